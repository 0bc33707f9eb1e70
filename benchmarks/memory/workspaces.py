"""How well the rules for cuDNN's convolutions hold: `python benchmarks/memory/workspaces.py` prints a table.

Every convolution of the committed surveys (benchmarks/memory/data/*/workspaces.jsonl.xz) against the rules of
ratc/memory/convolutions.py alone, without what was measured. Errors are relative to what the operator has alive while
it runs: input, weight, output and workspace. The rules were written from rows in bf16, TF32 and fp32 of two and three
dimensions; rows in fp16 and of one dimension were kept apart. Rows with less than 20 MB of tensors are left out: there,
a workspace is small whatever it is.

`--write` makes ratc/facts/convolutions.json from the surveys and the recorded steps: partial sums of weights'
gradients by shape, and every pass that was measured.
"""

from __future__ import annotations

import json
import lzma
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import recorded  # noqa: E402

from ratc.memory.convolutions import (  # noqa: E402
    BESIDE,
    Convolution,
    Direction,
    Measured,
    copied,
    copies,
    parsed,
    partial_sum_bytes,
    rule,
    signature,
    workspace,
)

#: Bytes of tensors from which a row counts.
LARGE = 20_000_000
PASSES: tuple[tuple[str, Direction], ...] = (("fwd", "forward"), ("dgrad", "input"), ("wgrad", "weight"))
NOTHING = Measured({}, {})
TABLE = ROOT / "ratc" / "facts" / "convolutions.json"
PROCESSORS = 132
#: Bytes within which a rule is right: one unit of the allocator.
UNIT = 512


def surveys() -> list[Path]:
    """Return the folders that hold a survey."""
    return sorted(file.parent for file in (HERE / "data").glob("*/workspaces.jsonl.xz"))


def rows(folder: Path, *operators: str) -> list[dict[str, Any]]:
    """Return a survey's rows of some operators."""
    with lzma.open(folder / "workspaces.jsonl.xz", "rt") as handle:
        found = [json.loads(line) for line in handle]
    return [row for row in found if row.get("op") in operators]


def convolution(row: dict[str, Any]) -> tuple[Convolution, int]:
    """Return a row's convolution, and the bytes of its input, weight and output."""
    size = 2 if row["dt"] in ("bf16", "fp16") else 4
    inputs, outputs = row["n"] * row["ci"] * row["sp"] ** row["dim"], row["fwd"][1] // size
    found = Convolution(
        arithmetic=row["dt"],
        channels_last=row["last"],
        transposed=row["tr"],
        batch=row["n"],
        channels=row["ci"],
        features=row["co"],
        groups=row["gr"],
        inputs=inputs,
        outputs=outputs,
        kernel=(row["k"],) * row["dim"],
        stride=(row["st"],) * row["dim"],
    )
    return found, (inputs + found.weights + outputs) * size


def errors(found: list[dict[str, Any]], known: Measured = NOTHING) -> Iterator[tuple[dict[str, Any], Direction, float]]:
    """Yield row, direction and relative error, for rows that are large enough."""
    for row in found:
        described, tensors = convolution(row)
        for key, direction in PASSES if tensors >= LARGE else ():
            measured = row[key][0] - row[key][1]
            size = workspace(described, direction, PROCESSORS, known)
            yield row, direction, (size - measured) / (tensors + measured)


def surveyed_passes() -> list[recorded.Recorded]:
    """Return the passes of all surveys. They hold what was allocated, in units; the kernel asked for a little less."""
    found = []
    for folder in surveys():
        for row in rows(folder, "conv"):
            conv, _ = convolution(row)
            for key, direction in PASSES:
                size = row[key][0] - row[key][1]
                found.append(recorded.Recorded("survey", conv, direction, max(0, size - UNIT + BESIDE)))
    return found


def recorded_passes() -> list[recorded.Recorded]:
    """Return the passes of all surveys and of all recorded steps."""
    found = surveyed_passes()
    for file in recorded.streams():
        data = recorded.gap.read(file)
        found += recorded.passes(data, {"zero_stage": None, **data})
    return found


def content(found: Iterable[recorded.Recorded]) -> dict[str, Any]:
    """Return what convolutions.json says of measured passes."""
    found = list(found)
    sums = _sums(found)
    known = parsed({"sums": sums, "passes": []})
    passes: dict[Any, dict[int, tuple[int, list[Any]]]] = defaultdict(dict)
    for one in found:
        if one.conv.positions:
            points = passes[signature(one.conv, one.direction)]
            if one.bytes_ >= points.get(one.conv.positions, (-1, []))[0]:
                points[one.conv.positions] = one.bytes_, _point(one, known)
    kept = [[list(key), [point for _, (_, point) in sorted(points.items())]] for key, points in passes.items()]
    return {"sums": sums, "passes": sorted(kept, key=str)}


def fitted(found: Iterable[recorded.Recorded]) -> Measured:
    """Return what convolutions.json would hold with these passes alone."""
    return parsed(json.loads(json.dumps(content(found))))


def _sums(found: Iterable[recorded.Recorded]) -> list[list[Any]]:
    """Partial sums of gradients of weights on NCHW tensors: what is allocated beyond the copies."""
    table: dict[tuple[str, int, int], dict[int, int]] = defaultdict(dict)
    for one in found:
        conv = one.conv
        plain = conv.pointwise and max(conv.stride) == 1
        if one.direction != "weight" or conv.channels_last or conv.groups > 1 or conv.arithmetic == "fp32" or plain:
            continue
        more = one.bytes_ - copies(conv, "weight") - BESIDE
        if (
            conv.positions
            and -UNIT <= more <= partial_sum_bytes(conv, PROCESSORS)
            and not (conv.channels < 8 and more < 0)
        ):
            points = table[("half" if conv.itemsize == 2 else "tf32", *conv.matrix)]
            points[conv.positions] = max(points.get(conv.positions, 0), more)
    return [[list(key), [list(point) for point in sorted(points.items())]] for key, points in sorted(table.items())]


def _point(one: recorded.Recorded, known: Measured) -> list[Any]:
    """What explains a pass: the rule, or the copies that leave least, and the rest."""
    conv, size = one.conv, one.bytes_
    ruled = rule(conv, one.direction, PROCESSORS, known)
    if abs((ruled + BESIDE if ruled else 0) - size) <= UNIT:
        return [conv.positions, None, 0]
    tensors = copied(conv, one.direction)
    best, rest = "", size
    for names in ("i", "o", "io", "iw", "ow", "iow"):
        left = size - sum(tensors[name] for name in names)
        if 0 <= left < rest:
            best, rest = names, left
    return [conv.positions, best, rest]


def write() -> None:
    """Write convolutions.json, a line a kind of convolution."""
    made = content(recorded_passes())
    sums, passes = (
        ",\n  ".join(json.dumps(entry, separators=(",", ":")) for entry in made[key]) for key in ("sums", "passes")
    )
    TABLE.write_text(f'{{"sums": [\n  {sums}],\n"passes": [\n  {passes}]}}\n')


def main() -> int:
    """Print a table, or write one with `--write`."""
    if "--write" in sys.argv:
        write()
        return 0
    print("| survey | type, layout | rows | median | under by more than 5 % | over by more than 5 % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for folder in surveys():
        groups: dict[str, list[float]] = defaultdict(list)
        for row, _, error in errors(rows(folder, "conv")):
            layout = "channels_last" if row["last"] else "contiguous"
            kept = ", not fitted to" if row["dt"] == "fp16" or row["dim"] == 1 else ""
            groups[f"{row['dt']}, {layout}{kept}"].append(error)
        for name, found in sorted(groups.items()):
            under, over = sum(error < -0.05 for error in found), sum(error > 0.05 for error in found)
            middle = statistics.median(abs(error) for error in found)
            print(f"| {folder.name} | {name} | {len(found)} | {middle:.1%} | {under} | {over} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
