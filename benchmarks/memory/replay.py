"""Predictions held against the committed measurements: `python benchmarks/memory/replay.py` prints the tables of
docs/develop/memory-measurements.md.

Every folder of benchmarks/memory/data/ is one card and one day; `gpu.py` makes them. Each case is traced here, on the
CPU, and replayed by ratc's model of the allocator for the card that was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu
from judge import Pair, Search, judge, overview, summary

from ratc.memory.estimate import Predictor
from ratc.memory.terms import Device
from ratc.memory.trace import Trace
from ratc.memory.zero import Strategy, bucket_elements
from ratc.own_code import trust
from ratc.tracing import fetch

DATA = gpu.DATA
GIB = 1 << 30


def folders() -> list[Path]:
    """Return the folders of measurements, one a card and a day."""
    return sorted(file.parent for file in DATA.glob("*/measured.json"))


def load(folder: Path) -> dict[str, Any]:
    """Return the measurements of a folder. Raises ValueError for a version that this code does not read."""
    data: dict[str, Any] = json.loads((folder / "measured.json").read_text())
    if data.get("data_version") != gpu.VERSION:
        raise ValueError(f"{folder}: version {data.get('data_version')!r}, expected {gpu.VERSION}")
    return data


def strategy(row: dict[str, Any], trace: Trace) -> Strategy:
    """How the row's step was spread: one process, with DeepSpeed if it names a stage."""
    several = row["request"]["accumulation"] > 1
    precision = row["request"]["training"]["precision"]
    engine = "torch" if row["zero_stage"] is None else "deepspeed"
    bucket = bucket_elements(trace.trainable)
    return Strategy(engine, 1, row["zero_stage"] or 0, False, precision, bucket, True, several)


def predictor(row: dict[str, Any]) -> Predictor:
    """Trace a row's request, or take the cached trace. Raises RuntimeError if it cannot be traced."""
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, gpu.PATHS))
    own = {"batch_sizes": [1]} if row.get("micro_batch") == 1 else {}
    trace, found = fetch.fetch({**row["request"], **own}, str(gpu.ZOO))
    if trace is None:
        raise RuntimeError(f"{row['name']}: {[item.message for item in found]}")
    return Predictor(trace, strategy(row, trace), expandable=row.get("allocator") == "expandable_segments")


def device(data: dict[str, Any]) -> Device:
    """Return the card that was measured."""
    card = data["card"]
    return Device(card["name"], card.get("nvml_total_bytes") or card["memory_bytes"], card["compute_capability"])


def pairs_of(data: dict[str, Any]) -> Iterator[Pair]:
    """Yield the predicted and the measured peak of every case that was measured."""
    # With no other process on the card what was in use before is the driver's own.
    own = data["card"].get("nvml_used_bytes", 1 << 60) < GIB
    card = device(data)
    for row in data["rows"]:
        if not row.get("peak_reserved_bytes"):
            continue
        found = predictor(row).estimate(card, row["micro_batch"])
        used = row.get("device_used_bytes")
        outside = used - row["reserved_bytes"] if used is not None and own else None
        bound = sum(term.bytes_ for term in found.outside)
        yield Pair(row["name"], found.peak_reserved_bytes, row["peak_reserved_bytes"], found.margin, outside, bound)


def searches_of(data: dict[str, Any]) -> Iterator[Search]:
    """Yield the largest micro-batch that a prediction allows under each bisected cap, and the largest that ran."""
    card = device(data)
    for row in data["rows"]:
        if "largest" not in row:
            continue
        prediction = predictor(row)
        failed = min(number for number, fits in row["tried"] if not fits)
        cap, low, high = int(row["cap_bytes"] * (1 - prediction.margin_of(card))), 0, 2 * failed
        # Live bytes grow with the micro-batch; replays need not, so from there down each is tried.
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if prediction.lowest(middle) <= cap else (low, middle)
        chosen = next((number for number in range(low, 0, -1) if prediction.at(cap, number)), 0)
        yield Search(row["name"], chosen, row["largest"], failed)


#: The page that holds the tables, and the lines between which they stand.
PAGE = gpu.ROOT / "docs" / "develop" / "memory-measurements.md"
BEGIN, END = "<!-- benchmarks/memory/replay.py writes from here -->", "<!-- to here -->"


def tables(folder: Path, data: dict[str, Any], pairs: list[Pair], searches: list[Search]) -> str:
    """Return what docs/develop/memory-measurements.md says of a folder of measurements."""
    versions = data["versions"]
    card = f"{data['card']['name']}, torch {versions['torch']}, cuDNN {versions.get('cudnn')}, {data['date']}"
    details = f"<details markdown='1'><summary>Every case</summary>\n\n{summary(pairs, searches)}\n\n</details>"
    return f"### {card}\n\n{overview(pairs, searches)}\n\n{details}\n"


def written(page: str, text: str) -> str:
    """Return a page with the tables put in place. Raises ValueError if it has no place for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def main() -> int:
    """Exit status 1 if a prediction breaks a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases whose name holds this")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/develop/memory-measurements.md")
    args = parser.parse_args()
    trust.begin(True, False)  # the models are of this folder
    status = 0
    text = []
    for folder in folders():
        data = load(folder)
        data["rows"] = [row for row in data["rows"] if args.only in row["name"]]
        if not data["rows"]:
            continue
        pairs, searches = list(pairs_of(data)), list(searches_of(data))
        text.append(tables(folder, data, pairs, searches))
        print(text[-1])
        for line in judge(pairs, searches):
            print(line)
            status = 1
    if args.write and not args.only:
        PAGE.write_text(written(PAGE.read_text(), "\n".join(text)))
    return status


if __name__ == "__main__":
    sys.exit(main())
