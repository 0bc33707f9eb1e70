"""What a split of the data holds: sizes, values, classes, and the samples that cannot be what the task expects.

`ratc_runtime.data.check` prints it; the first start of a run looks at a few samples by itself, before any step.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ratc_runtime import nested, watchdog
from ratc_runtime.data.randomness import all_kept, sample_seed, seed_all
from ratc_runtime.data.samples import as_finding, checked, name_of
from ratc_runtime.errors import RuntimeFinding, warn

if TYPE_CHECKING:
    from ratc_runtime.distributed import World
    from ratc_runtime.tasks.base import Task

#: At the start of a run: samples of a split that are read, and seconds for them.
FIRST_SAMPLES, FIRST_SECONDS = 32, 3.0
#: Seconds for the search for any foreground, if these samples have none.
SEARCH_SECONDS = 20.0
#: Problems that are kept, of any number.
_KEPT = 20
#: Distinct sizes that are counted.
_SIZES = 10_000


@dataclass
class Survey:
    """What was seen of a split of `samples` samples.

    `amounts` are the pixels (voxels, objects) of each class, `holders` the samples that have any. `sizes` are those of
    the images' files, or of the tensors if a data set does not say. `turned` are images with an EXIF orientation.
    """

    samples: int
    read: int = 0
    bad: int = 0
    problems: list[RuntimeFinding] = field(default_factory=list)
    sizes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    channels: Counter[str] = field(default_factory=Counter)
    low: float = float("inf")
    high: float = float("-inf")
    amounts: Counter[int] = field(default_factory=Counter)
    holders: Counter[int] = field(default_factory=Counter)
    turned: int = 0

    @property
    def complete(self) -> bool:
        """Whether every sample of the split was read."""
        return self.read >= self.samples

    def count(self, amounts: Mapping[int, int]) -> None:
        """Add the pixels or objects of each class of one sample."""
        self.amounts.update(amounts)
        self.holders.update(number for number, amount in amounts.items() if amount)

    def note(self, problem: RuntimeFinding) -> None:
        """Add a sample that cannot be used."""
        self.bad += 1
        if len(self.problems) < _KEPT:
            self.problems.append(problem)


def spread(length: int, count: int, seed: int) -> list[int]:
    """Return `count` random positions of a split in ascending order; all of them if it has fewer."""
    return sorted(random.Random(seed).sample(range(length), min(count, length)))


def survey(
    dataset: Any, task: Task, seed: int, positions: Iterable[int], seconds: float | None = None, foreign: bool = False
) -> Survey:
    """Read samples and return what was seen; the first one always, others within `seconds`.

    One sample is in memory at a time. A `foreign` data set may draw random numbers: those of the process stay as they
    were.
    """
    seen, begun = Survey(len(dataset)), time.monotonic()
    with all_kept():
        for position in positions:
            if seconds is not None and seen.read and time.monotonic() - begun > seconds:
                break
            watchdog.mark()
            if foreign:
                seed_all(sample_seed(seed, 0, position))
            seen.read += 1
            try:
                _look(dataset, task, position, seen)
            except Exception as error:  # a data set of the user's may raise anything
                seen.note(as_finding(error, name_of(dataset, position)))
    return seen


def _look(dataset: Any, task: Task, position: int, seen: Survey) -> None:
    item = checked(dataset[position], name_of(dataset, position))
    seen.count(task.amounts(item["image"], item["target"], item["name"]))
    finest = item["image"][0] if isinstance(item["image"], list) else item["image"]
    read = getattr(dataset, "header", None)
    if read is not None:
        header = read(position)
        size, channels = header.size, header.mode
        seen.turned += header.orientation != 1
    elif isinstance(finest, torch.Tensor) and finest.dim() > 2:
        size, channels = tuple(reversed(finest.shape[1:])), str(finest.shape[0])
    else:
        size, channels = (), type(finest).__name__
    if size in seen.sizes or len(seen.sizes) < _SIZES:
        seen.sizes[size] += 1
    seen.channels[channels] += 1
    for tensor in nested.tensors(item["image"]):
        if tensor.numel():
            seen.low = min(seen.low, float(tensor.min()))
            seen.high = max(seen.high, float(tensor.max()))


def search(dataset: Any, task: Task, positions: Iterable[int], seconds: float | None) -> tuple[bool, int]:
    """Return whether any target has foreground, and how many targets were read until that was known.

    Targets that cannot be read have none. Data sets with `target(index)` do not decode their images for this.
    """
    read = getattr(dataset, "target", None)
    number, begun, wanted = 0, time.monotonic(), set(task.foreground)
    with all_kept():
        for position in positions:
            if seconds is not None and time.monotonic() - begun > seconds:
                break
            watchdog.mark()
            number += 1
            try:
                target = checked(dataset[position], "")["target"] if read is None else read(position)
                amounts = task.amounts(None, target, name_of(dataset, position))
            except Exception:  # a sample that cannot be read was or will be reported as such
                continue
            if any(amounts.get(one) for one in wanted):
                return True, number
    return False, number


def nothing_there(split: str, samples: int) -> RuntimeFinding:
    """Return R571: no sample of a split has anything that could be learnt or scored."""
    return RuntimeFinding(
        "R571",
        f"no sample of {split} has any foreground or object",
        f"{samples} sample(s) were read; a model would learn to predict nothing, and scores would mean nothing",
        "look at the masks or annotations: `ratc data check SPEC --all` draws some of them; see to it that"
        " data.num_classes, data.ignore_index and the files' values fit each other",
    )


def never_there(split: str, seen: Survey, task: Task) -> str:
    """Return which classes no sample has that was read, in words; empty if there is none such."""
    absent = [task.class_labels[number] for number in task.class_labels if not seen.holders[number]]
    if not absent or not seen.read or seen.bad == seen.read:
        return ""
    which = f"class{'es' if len(absent) > 1 else ''} {', '.join(absent[:20])}"
    return f"[R572] {which} never occur{'s' if len(absent) == 1 else ''} in the {seen.read} samples of {split} read"


def first_look(datasets: Mapping[str, Any], task: Task, world: World, foreign: bool) -> None:
    """Look at a few samples of each split before the first step; every rank calls this, and reads its share.

    `datasets` are by split, of several tasks by `split/task`. Raises on every rank what is wrong with the first bad
    sample (unless bad samples are left out and some are good), and R571 for a split without any foreground.
    """
    for name, dataset in datasets.items():
        part = task.parts.get(name.partition("/")[2], task)
        seed = part.lock.seed
        mine = spread(len(dataset), FIRST_SAMPLES, seed)[world.rank :: world.size]
        seen = survey(dataset, part, seed, mine, FIRST_SECONDS, foreign)
        everywhere = world.gather(seen)
        problems = [problem for one in everywhere for problem in one.problems]
        read, bad = (sum(counts) for counts in zip(*((one.read, one.bad) for one in everywhere), strict=True))
        if problems and (part.lock.data.on_bad_sample == "fail" or (bad == read and read > 1)):
            first = problems[0]
            raise RuntimeFinding(first.code, first.message, first.note, first.help)
        if (
            read
            and part.foreground
            and not any(one.holders[number] for one in everywhere for number in part.foreground)
        ):
            _search_everywhere(name, dataset, part, world)
        elif world.main and read == len(dataset):
            whole = Survey(len(dataset), read, bad)
            for one in everywhere:
                whole.holders.update(one.holders)
            said = never_there(name, whole, part)
            if said:
                warn(said)


def _search_everywhere(name: str, dataset: Any, task: Task, world: World) -> None:
    """Look for any foreground in the whole split; raise R571 if it has none, warn if time is short."""
    found = world.gather(search(dataset, task, range(world.rank, len(dataset), world.size), SEARCH_SECONDS))
    number = sum(read for _, read in found)
    if any(yes for yes, _ in found):
        return
    if number >= len(dataset) and not task.lock.debug:  # a debug run has a few of the samples only
        raise nothing_there(name, number)
    if world.main:
        warn(f"[R571] the first {number} samples of {name} have no foreground or object; there are {len(dataset)}")
