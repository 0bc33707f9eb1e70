"""Mean and standard deviation of the scores of several runs: `python -m ratc_runtime summary OUTPUT…`.

The runs are the folds of a cross-validation, or one spec with several seeds. Each counts once, with its best epoch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ratc_runtime.errors import RuntimeFinding, say
from ratc_runtime.output import atomic
from ratc_runtime.output.results import RESULTS_FILE, read_results, unwritable


def runs_in(places: Sequence[Path]) -> list[Path]:
    """Return the output folders of runs: those given, or of a folder without results those in it that have some.

    Raises R508 if a folder has none.
    """
    found: list[Path] = []
    for place in places:
        inside = [place] if (place / RESULTS_FILE).is_file() else []
        if not inside and place.is_dir():
            inside = sorted(one.parent for one in place.glob(f"*/{RESULTS_FILE}"))
        if not inside:
            raise RuntimeFinding("R508", f"{place} and its folders hold no {RESULTS_FILE}")
        found += inside
    return list(dict.fromkeys(found))


def summarise(runs: Sequence[Path]) -> dict[str, Any]:
    """Return of each score its values by run, their mean, and their standard deviation (with n - 1; None for one run).

    `val/…` are the scores of the best epoch, `test/…` those of the test split. Raises R508 for a run that has not
    finished, or whose scores are others than those of the first.
    """
    values: dict[str, list[float | None]] = {}
    for run in runs:
        results = read_results(run)
        if results.get("status") != "finished":
            raise RuntimeFinding(
                "R508", f"the run in {run} has not finished", help="leave this run out, or let it finish"
            )
        scores = _scores(results)
        if values and scores.keys() != values.keys():
            raise RuntimeFinding("R508", f"the run in {run} has other scores than {runs[0]}", ", ".join(scores))
        for name, value in scores.items():
            values.setdefault(name, []).append(value)
    told = {}
    for name, found in values.items():
        finite = [value for value in found if value is not None and math.isfinite(value)]
        whole = len(finite) == len(found)  # a mean of the runs that went well would be too good
        told[name] = {
            "mean": mean(finite) if whole else None,
            "sd": stdev(finite) if whole and len(finite) > 1 else None,
            "values": found,
        }
    return {"runs": [str(run) for run in runs], "scores": told}


def _scores(results: dict[str, Any]) -> dict[str, float | None]:
    epochs: list[dict[str, Any]] = results.get("epochs", [])
    best = next((one for one in epochs if one["epoch"] == results.get("best_epoch")), {})
    val = {f"val/{key[4:]}": value for key, value in best.items() if key.startswith("val_")}
    test = {f"test/{key}": value for key, value in (results.get("test") or {}).items() if key != "samples"}
    return {**val, **test}


def _lines(summary: dict[str, Any]) -> list[str]:
    width = max(len(name) for name in summary["scores"])
    count = len(summary["runs"])
    lines = [f"{count} run{'s' if count != 1 else ''}"]
    for name, score in summary["scores"].items():
        middle, sd = (f"{score[key]:.4f}" if score[key] is not None else "-" for key in ("mean", "sd"))
        each = " ".join("-" if value is None else f"{value:.4f}" for value in score["values"])
        lines.append(f"{name:<{width}}  {middle} ± {sd}  ({each})")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Print the summary of runs; return 0, or 1 after a finding."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime summary", description="Mean and standard deviation of the scores of several runs."
    )
    parser.add_argument(
        "outputs", type=Path, nargs="+", help="output folders, or a folder that holds them, as an array has"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the summary as JSON, too")
    arguments = parser.parse_args(argv)
    try:
        summary = summarise(runs_in(arguments.outputs))
        say("\n".join(_lines(summary)))
        if arguments.output is not None:
            try:
                atomic.write_text(arguments.output, json.dumps(summary, indent=2) + "\n")
            except OSError as error:
                raise unwritable(arguments.output, error) from None
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
