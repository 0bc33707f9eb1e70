"""The results of a study: its trials in order, as a table, as CSV and as JSON; frozen values, no I/O."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ratc import markup
from ratc.tuning.points import Study
from ratc.tuning.space import inline

#: The status of a trial: it has ended, the study ended it early, it trains, it was stopped or not begun, it failed, its
#: values are infeasible.
FINISHED, EARLY, RUNNING, OPEN = "finished", "ended early", "running", "open"
FAILED, LEFT_OUT = "failed", "left out"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial: its values by path, its status, and the metric at its best epoch, or the reason why it has none.

    ``seconds`` is its running time.
    """

    name: str
    values: Mapping[str, Any]
    status: str
    metric: float | None = None
    epoch: int | None = None
    seconds: float | None = None
    why: str = ""


def judged(results: Mapping[str, Any], metric: str, larger_is_better: bool) -> tuple[float | None, int | None]:
    """The metric at the best epoch of a run's `results.json`, and that epoch; None if no epoch has a number."""
    found = [
        (float(record[f"val_{metric}"]), int(record["epoch"]))
        for record in results.get("epochs", ())
        if isinstance(record.get(f"val_{metric}"), (int, float)) and math.isfinite(record[f"val_{metric}"])
    ]
    if not found:
        return None, None
    # The earlier one of equals, as the runtime chooses its best checkpoint.
    return min(found, key=lambda pair: (-pair[0] if larger_is_better else pair[0], pair[1]))


def ranked(trials: Sequence[Trial], larger_is_better: bool) -> list[Trial]:
    """Return the trials, best first; those without a metric come last, in their order."""

    def key(trial: Trial) -> float:
        if trial.metric is None:
            return math.inf
        return -trial.metric if larger_is_better else trial.metric

    return sorted(trials, key=key)


def best(trials: Sequence[Trial], larger_is_better: bool) -> Trial | None:
    """The best trial that ended; None if none has."""
    ended = [
        trial for trial in ranked(trials, larger_is_better) if trial.status == FINISHED and trial.metric is not None
    ]
    return ended[0] if ended else None


def table(study: Study, trials: Sequence[Trial]) -> str:
    """Return a table, best first, with a column per varied key; the last column has the status and a reason."""
    paths = [entry.path for entry in study.space]
    head = ["trial", *(path.rpartition(".")[2] for path in paths), study.metric, "epoch", "state"]
    rows = [
        [
            trial.name,
            *(inline(trial.values[path]) for path in paths),
            f"{trial.metric:.4f}" if trial.metric is not None else "-",
            str(trial.epoch) if trial.epoch is not None else "-",
            f"{trial.status} {trial.why}".rstrip(),
        ]
        for trial in ranked(trials, study.larger_is_better)
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join(lines) + "\n"


def as_csv(study: Study, trials: Sequence[Trial]) -> str:
    """Return CSV with a row per trial, in their own order."""
    paths = [entry.path for entry in study.space]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *paths, study.metric, "epoch", "status", "seconds"])
    for trial in trials:
        values = [inline(trial.values[path]) for path in paths]
        writer.writerow([trial.name, *values, trial.metric, trial.epoch, trial.status, trial.seconds])
    return text.getvalue()


def as_json(study: Study, trials: Sequence[Trial], finished: Sequence[str] = ()) -> str:
    """The study, as it was read, and its trials in their own order; docs/guides/tuning.md describes it. ``finished``
    are the digests of the locks of jobs that have run it to its end: a job is finished only if its own stands there.
    """
    chosen = best(trials, study.larger_is_better)
    tree = {
        "version": VERSION,
        "metric": study.metric,
        "larger_is_better": study.larger_is_better,
        "search_space": {entry.path: entry.text for entry in study.space},
        "best": chosen.name if chosen else None,
        "finished_locks": list(finished),
        "trials": [
            {
                "name": trial.name,
                "values": dict(trial.values),
                "status": trial.status,
                "metric": trial.metric,
                "epoch": trial.epoch,
                "seconds": trial.seconds,
                "why": trial.why,
            }
            for trial in trials
        ],
    }
    return markup.json(tree)
