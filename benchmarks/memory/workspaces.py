"""How well the rules for cuDNN's convolutions hold: `python benchmarks/memory/workspaces.py` prints a table.

Every convolution of the committed surveys (benchmarks/memory/data/*/workspaces.jsonl.xz) against the rule of
runtime/ratc_runtime/trace/convolutions.py. Errors are relative to what the operator has alive while it runs: input,
weight, output and workspace. The rules were written from rows in bf16, TF32 and fp32 of two and three dimensions; rows
in fp16 and of one dimension were kept apart. Rows with less than 20 MB of tensors are left out: there, a workspace is
small whatever it is.
"""

from __future__ import annotations

import json
import lzma
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "runtime"))

from ratc_runtime.trace.convolutions import Convolution, Direction, Workspace, copies, workspace  # noqa: E402
from ratc_runtime.trace.partial_sums import UNIT  # noqa: E402

#: Bytes of tensors from which a row counts.
LARGE = 20_000_000
PASSES: tuple[tuple[str, Direction], ...] = (("fwd", "forward"), ("dgrad", "input"), ("wgrad", "weight"))


def rows(folder: Path, *operators: str) -> list[dict[str, Any]]:
    """Return a survey's rows of some operators."""
    with lzma.open(folder / "workspaces.jsonl.xz", "rt") as handle:
        found = [json.loads(line) for line in handle]
    return [row for row in found if row.get("op") in operators]


def convolution(row: dict[str, Any]) -> tuple[Convolution, int]:
    """Return a row's convolution, and the bytes of its input, weight and output."""
    size = 2 if row["dt"] in ("bf16", "fp16") else 4
    inputs, outputs = row["n"] * row["ci"] * row["sp"] ** row["dim"], row["fwd"][1] // size
    described = Convolution(
        batch=row["n"],
        channels=row["ci"],
        features=row["co"],
        inputs=inputs,
        outputs=outputs,
        kernel=(row["k"],) * row["dim"],
        stride=(row["st"],) * row["dim"],
        groups=row["gr"],
        transposed=row["tr"],
        channels_last=row["last"],
        itemsize=size,
        arithmetic=row["dt"],
    )
    return described, (inputs + described.weights + outputs) * size


def errors(found: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Direction, float, Workspace]]:
    """Yield row, direction, relative error and the rule's answer, for rows that are large enough."""
    for row in found:
        described, tensors = convolution(row)
        for key, direction in PASSES if tensors >= LARGE else ():
            measured = row[key][0] - row[key][1]
            rule = workspace(described, direction)
            yield row, direction, (rule.bytes_ - measured) / (tensors + measured), rule


def partial_sums(folder: Path) -> dict[str, dict[tuple[int, int], int]]:
    """Return what weights' gradients take beyond the copies, in units of 16 KiB, by type and shape of the gradient.

    The most of all batches that fill the card (16 images, or a volume): the tables of `trace/partial_sums.py`.
    """
    found: dict[str, dict[tuple[int, int], int]] = {"half": {}, "tf32": {}}
    for row in rows(folder, "conv"):
        if row["last"] or row["gr"] > 1 or (row["k"] == 1 and row["st"] == 1) or row["dt"] not in ("bf16", "tf32"):
            continue
        if row["dim"] == 2 and row["n"] < 16:
            continue
        described, _ = convolution(row)
        height, rest = (row["ci"], row["co"]) if row["tr"] else (row["co"], row["ci"])
        shape = height, rest * row["k"] ** row["dim"]
        more = row["wgrad"][0] - row["wgrad"][1] - copies(described, "weight")
        table = found["half" if row["dt"] == "bf16" else "tf32"]
        table[shape] = max(table.get(shape, 0), -(-max(0, more - 1536) // UNIT))
    return found


def main() -> int:
    """Print a table; with `--fit` the tables of `trace/partial_sums.py` instead."""
    if "--fit" in sys.argv:
        for folder in sorted(file.parent for file in (HERE / "data").glob("*/workspaces.jsonl.xz")):
            for name, table in partial_sums(folder).items():
                print(f"{name.upper()} = {dict(sorted(table.items()))}")
        return 0
    print("| survey | type, layout | rows | median | under by more than 5 % | over by more than 5 % | of them unsure |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for folder in sorted(file.parent for file in (HERE / "data").glob("*/workspaces.jsonl.xz")):
        groups: dict[str, list[tuple[float, bool]]] = defaultdict(list)
        for row, _, error, rule in errors(rows(folder, "conv")):
            layout = "channels_last" if row["last"] else "contiguous"
            kept = ", not fitted to" if row["dt"] == "fp16" or row["dim"] == 1 else ""
            groups[f"{row['dt']}, {layout}{kept}"].append((error, rule.sure))
        for name, found in sorted(groups.items()):
            wrong = [(error, sure) for error, sure in found if abs(error) > 0.05]
            under = sum(error < 0 for error, _ in wrong)
            middle = statistics.median(abs(error) for error, _ in found)
            unsure = sum(not sure for _, sure in wrong)
            print(
                f"| {folder.name} | {name} | {len(found)} | {middle:.1%} | {under} | {len(wrong) - under} | {unsure} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
