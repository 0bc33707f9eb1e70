"""Describes a data set and its unusable samples: `python -m ratc_runtime.data.check LOCK`.

Prints a table of every split, draws four random samples with their masks or boxes, and reports errors. The exit status
is 1 if something is refused. One sample is in memory at a time.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ratc_runtime.config import option_types
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.data import near
from ratc_runtime.data.copies import between_splits
from ratc_runtime.data.folders import SPLITS
from ratc_runtime.data.joint import flat, open_data_set
from ratc_runtime.data.loader_rate import loader_rate
from ratc_runtime.data.loading import MOST_SHARE, is_foreign, left_out
from ratc_runtime.data.samples import checked, name_of
from ratc_runtime.data.survey import (
    Survey,
    blank_images,
    never_there,
    nothing_there,
    nothing_yet,
    search,
    see_through,
    spread,
    survey,
)
from ratc_runtime.errors import RuntimeFinding, say, warn, warn_of
from ratc_runtime.output.atomic import replacing
from ratc_runtime.tasks import make_task
from ratc_runtime.tasks.base import Task

#: Samples read of a split without --all, and the time limit in seconds.
SAMPLES, SECONDS = 64, 60.0
#: Samples that are drawn.
PICTURES = 4
PICTURE = "samples.png"
#: Findings of one split that are printed.
_SHOWN = 8
#: Classes that the table lists.
_CLASSES = 40


def check(lock: Lock, data_dir: Path, whole: bool, samples: int, pictures: Path | None) -> int:
    """Print a description of the data; return the number of findings that refuse them."""
    task, refused = make_task(lock), 0
    opened: dict[str, Any] = {}
    unopened: dict[str, RuntimeFinding] = {}
    for split in SPLITS:
        try:
            opened[split] = open_data_set(lock, data_dir, split)
        except RuntimeFinding as finding:
            unopened.setdefault(finding.render(), finding)  # a folder that is not there is so for every split
    refused += sum(_tell(finding) for finding in unopened.values())
    datasets = flat(opened)
    if not datasets:
        return refused
    refused += _opened(task, datasets)
    seen: dict[str, Survey] = {}
    for name, dataset in datasets.items():
        part = task.parts.get(name.partition("/")[2], task)
        positions = range(len(dataset)) if whole else spread(len(dataset), samples, part.lock.seed)
        seconds = None if whole else SECONDS
        seen[name] = survey(dataset, part, positions, seconds, is_foreign(part.lock))
    say(_table(datasets, seen))
    for kind, part in (task.parts or {"": task}).items():
        of_part = {name: one for name, one in seen.items() if name.partition("/")[2] == kind}
        if part.class_labels and any(one.amounts for one in of_part.values()):
            say(f"\n{_class_table(of_part, part)}")
    for name, found in seen.items():
        part = task.parts.get(name.partition("/")[2], task)
        refused += _judge(name, datasets[name], found, part, None if whole else SECONDS)
    for kind in task.parts or ("",):
        of_part = {name: one for name, one in datasets.items() if name.partition("/")[2] == kind}
        for copies in between_splits(of_part, None if whole else SECONDS):
            warn_of(copies)
    lengths = [len(dataset) for name, dataset in datasets.items() if name.partition("/")[0] == "train"]
    if lengths:
        try:
            left = left_out(max(lengths), lock)
        except RuntimeFinding as finding:
            refused += _tell(finding)
        else:
            if left is not None:
                warn_of(left)
    if "train" in opened and not refused:
        refused += _show_rate(opened["train"], lock, task)
    if pictures is not None:
        for path in _draw(pictures, datasets, task):
            say(f"written: {path}")
    return refused


def _show_rate(dataset: Any, lock: Lock, task: Task) -> int:
    """Print the samples per second of one loader process; return the number of findings."""
    try:
        rate = loader_rate(dataset, lock, task.collate)
    except RuntimeFinding as finding:
        return _tell(finding)
    if rate is not None:
        number = f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}"
        say(f"\none loader process delivers {number} samples/s for training (`ratc fit --loader-rate {number}`)")
    return 0


def _opened(task: Task, datasets: dict[str, Any]) -> int:
    """Let the task compare the splits; return the number of findings."""
    refused = 0
    for kind, part in (task.parts or {"": task}).items():
        try:
            part.opened({name: one for name, one in datasets.items() if name.partition("/")[2] == kind})
        except RuntimeFinding as finding:
            refused += _tell(finding)
    return refused


def _judge(name: str, dataset: Any, found: Survey, task: Task, seconds: float | None) -> int:
    """Print errors and warnings for a split; return the number of findings that refuse it."""
    skip = task.lock.data.on_bad_sample == "skip" and found.bad < found.read
    for problem in found.problems[:_SHOWN]:
        _tell(problem, "warning" if skip else "error")
    if found.bad > _SHOWN:
        print(f"  note: {found.bad} of {found.read} samples of {name} that were read cannot be used", file=sys.stderr)
    refused = 0 if skip else found.bad
    if skip:
        refused += _too_many(name, found, len(getattr(dataset, "missing", ())))
    if found.samples == 0:
        return refused + _tell(
            RuntimeFinding("R506", f"split {name} has no samples", "train, val and test need samples")
        )
    if found.turned:
        warn(
            f"{found.turned} of {found.read} images of {name} that were read have an EXIF orientation; it is applied,"
            " so their masks or boxes must be of the upright image"
        )
    for warning in (see_through(name, found), blank_images(name, found, task)):
        if warning is not None:
            warn_of(warning)
    if task.foreground and not any(found.holders[number] for number in task.foreground) and not refused:
        there, number = (False, found.read) if found.complete else search(dataset, task, range(len(dataset)), seconds)
        if not there and number >= len(dataset):
            return refused + _tell(nothing_there(name, number))
        if not there:
            warn_of(nothing_yet(name, number, len(dataset)))
            return refused
    absent = never_there(name, found, task)
    if absent is not None:
        warn_of(absent)
    return refused


def _too_many(name: str, found: Survey, missing: int) -> int:
    """Print R533 if more samples would be skipped than a run accepts; return the number of findings."""
    bad, looked = found.bad + missing, found.read + missing
    if bad <= 1 or bad <= MOST_SHARE * looked:
        return 0
    message = f"{bad} of {looked} samples of {name} that were read are bad, more than {MOST_SHARE:.0%}"
    return _tell(RuntimeFinding("R533", message, help="repair them, or remove their names from the split"))


def _tell(finding: RuntimeFinding, severity: str = "error") -> int:
    print(severity + finding.render().removeprefix("error"), file=sys.stderr, flush=True)
    return 1


def _table(datasets: dict[str, Any], seen: dict[str, Survey]) -> str:
    rows: list[tuple[str, ...]] = [("split", "samples", "read", "bad", "missing", "size", "channels", "values")]
    for name, found in seen.items():
        missing = len(getattr(datasets[name], "missing", ()))
        values = f"{found.low:.3g} to {found.high:.3g}" if found.low <= found.high else "-"
        channels = ", ".join(f"{kind} ({count})" for kind, count in found.channels.most_common(4))
        numbers = (found.samples, found.read, found.bad, missing)
        rows.append((name, *map(str, numbers), _sizes(found), channels or "-", values))
    return aligned(rows, right=(1, 2, 3, 4))


def _sizes(found: Survey) -> str:
    """Return the sizes of a split's images as text: width x height."""
    known = sorted(found.sizes)
    if not known:
        return "-"
    if len(known) == 1:
        return _spelled(known[0])
    return f"{_spelled(known[0])} to {_spelled(known[-1])} ({len(known)} sizes)"


def _spelled(size: Sequence[int]) -> str:
    return " x ".join(map(str, size)) or "-"


def _class_table(seen: dict[str, Survey], task: Task) -> str:
    """Return a table of each class's share of the pixels or objects of each split, and of its number of samples."""
    rows = [("class", *(f"{name}: share, samples" for name in seen))]
    for number, label in list(task.class_labels.items())[:_CLASSES]:
        cells = []
        for found in seen.values():
            share = found.amounts[number] / max(1, sum(found.amounts.values()))
            cells.append(f"{share:.2%}, {found.holders[number]} of {found.read - found.bad}")
        rows.append((label, *cells))
    if len(task.class_labels) > _CLASSES:
        rows.append((f"… {len(task.class_labels) - _CLASSES} more", *("" for _ in seen)))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return rows of text as a table."""
    shown = [[near.shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    lines = []
    for row in shown:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _draw(folder: Path, datasets: dict[str, Any], task: Task) -> list[Path]:
    """Draw four random samples of each task; return the files."""
    drawn = []
    for kind, part in (task.parts or {"": task}).items():
        own = {name: dataset for name, dataset in datasets.items() if name.partition("/")[2] == kind}
        samples = list(_random_samples(own, part.lock.seed))
        path = folder / (f"{kind}-{PICTURE}" if kind else PICTURE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path, shared=True) as work:
                if samples and part.draw_samples(work, samples):
                    drawn.append(path)
        except (OSError, ImportError, ValueError) as error:
            warn(f"pictures not drawn: {type(error).__name__}: {error}")
    return drawn


def _random_samples(datasets: dict[str, Any], seed: int) -> list[tuple[str, Any, Any]]:
    """Return name, finest image and target of up to `PICTURES` readable samples."""
    places = [(name, position) for name, dataset in datasets.items() for position in _few(len(dataset), seed)]
    random.Random(seed).shuffle(places)
    found: list[tuple[str, Any, Any]] = []
    for name, position in places:
        dataset = datasets[name]
        try:
            item = checked(dataset[position], name_of(dataset, position))
        except Exception:  # it was reported with the others
            continue
        image = item["image"][0] if isinstance(item["image"], list) else item["image"]
        found.append((f"{name}: {item['name']}", image, item["target"]))
        if len(found) == PICTURES:
            break
    return found


def _few(length: int, seed: int) -> list[int]:
    """Return random positions of a split, enough to find four readable samples if most are good."""
    return random.Random(seed).sample(range(length), min(length, 4 * PICTURES))


def main(argv: list[str] | None = None) -> int:
    """Check the data and print the result; return 0, or 1 if something is refused."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime.data.check",
        description="Describe a data set, and name samples that cannot be used.",
    )
    parser.add_argument("lock", type=Path, help="the compiled lock.yaml")
    parser.add_argument(
        "--data-dir", type=Path, help="folder of the data (default: RAT_DATA_DIR, or the folder in the lock)"
    )
    parser.add_argument("--all", action="store_true", help="read every sample")
    parser.add_argument(
        "--samples",
        type=option_types.count,
        default=SAMPLES,
        help=f"number of samples to read from each split (default: {SAMPLES})",
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help=f"draw {PICTURES} samples into DIR/{PICTURE}")
    arguments = parser.parse_args(argv)
    try:
        lock = read_lock(arguments.lock)
        data_dir = arguments.data_dir or Path(os.environ.get("RAT_DATA_DIR") or lock.data.data_dir)
        return 1 if check(lock, data_dir, arguments.all, arguments.samples, arguments.pictures) else 0
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
