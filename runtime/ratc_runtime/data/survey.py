"""A survey of a split: sizes, values, classes, and the samples that the task cannot use.

`ratc_runtime.data.check` prints it. The first start of a run checks a few samples itself, before any step.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from ratc_runtime.data import pytree
from ratc_runtime.data.copies import between_splits
from ratc_runtime.data.loading import ignore_stop_signals, killed_worker
from ratc_runtime.data.randomness import all_kept, sample_seed, seed_all
from ratc_runtime.data.samples import as_finding, checked, name_of
from ratc_runtime.distributed import watchdog
from ratc_runtime.errors import RuntimeFinding, warn_of
from ratc_runtime.output.sizes import counted

if TYPE_CHECKING:
    from ratc_runtime.distributed.world import World
    from ratc_runtime.tasks.base import Task

#: At the start of a run: samples read of a split, and the time limit in seconds.
FIRST_SAMPLES, FIRST_SECONDS = 32, 3.0
#: Seconds for one sample in another process.
PATIENCE = 15.0
#: Seconds for the search for any foreground, if these samples have none.
SEARCH_SECONDS = 20.0
#: Problems that are kept at most.
_KEPT = 20
#: Distinct sizes that are counted.
_SIZES = 10_000


@dataclass
class Survey:
    """The results for the samples read from a split of `samples` samples.

    `amounts` are the pixels (voxels, objects) of each class, `holders` the numbers of samples with any. `sizes` are
    those of the images' files, or of the tensors if the data set gives no headers. `turned` counts images with an EXIF
    orientation, `transparent` those with transparent pixels, `blank` those with only one value. `low` and `high` are
    the least and the largest value of all images; `bad` counts the samples with a problem.
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
    transparent: int = 0
    blank: int = 0

    @property
    def complete(self) -> bool:
        """True if every sample of the split was read."""
        return self.read >= self.samples

    def count(self, amounts: Mapping[int, int]) -> None:
        """Add the pixels or objects of each class of one sample."""
        self.amounts.update(amounts)
        self.holders.update(number for number, amount in amounts.items() if amount)

    def add(self, other: Survey) -> None:
        """Add the results for other samples of the same split."""
        self.read += other.read
        self.bad += other.bad
        self.turned += other.turned
        self.transparent += other.transparent
        self.blank += other.blank
        self.problems += other.problems[: max(0, _KEPT - len(self.problems))]
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        for size, number in other.sizes.items():
            if size in self.sizes or len(self.sizes) < _SIZES:
                self.sizes[size] += number
        self.channels += other.channels
        self.amounts += other.amounts
        self.holders += other.holders

    def note(self, problem: RuntimeFinding) -> None:
        """Add a bad sample."""
        self.bad += 1
        self.problems.append(problem)


def spread(length: int, count: int, seed: int) -> list[int]:
    """Return `count` random positions of a split in ascending order; all positions if it has fewer."""
    return sorted(random.Random(seed).sample(range(length), min(count, length)))


def survey(
    dataset: Any,
    task: Task,
    positions: Iterable[int],
    seconds: float | None = None,
    foreign: bool = False,
    apart: bool = False,
) -> Survey:
    """Read samples and return the results: the first sample always, others within `seconds`.

    One sample is in memory at a time. A `foreign` data set may draw random numbers: the process's random state is
    restored. For `apart` see `each`.
    """
    seen, begun = Survey(len(dataset)), time.monotonic()
    for one in each(dataset, partial(_look, task, foreign), positions, apart):
        watchdog.mark()
        seen.add(one)
        if seconds is not None and time.monotonic() - begun > seconds:
            break
    return seen


def each(
    dataset: Any, function: Callable[[Any, int], Any], positions: Iterable[int], apart: bool = False
) -> Iterator[Any]:
    """Yield `function(dataset, position)` for each position; with `apart`, from another process.

    A data set that opens files at its first read must not do so in a process that later forks loader processes: they
    would all read through the same descriptors. The other process is killed if a sample takes longer than `PATIENCE`,
    and the rest is left out: in training the watchdog will report the hang. Raises R513 if it is killed by something
    else.
    """
    if not apart:
        with all_kept():
            yield from (function(dataset, position) for position in positions)
        return
    loader: DataLoader[Any] = DataLoader(
        _Applied(dataset, function),
        batch_size=None,
        sampler=list(positions),
        num_workers=1,
        timeout=PATIENCE,
        collate_fn=_as_it_is,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator().manual_seed(0),  # making an iterator must not move the global random state
    )
    iterator: Any = iter(loader)
    try:
        yield from iterator
    except RuntimeError as error:
        if "DataLoader timed out" in str(error):
            return
        if "DataLoader worker" not in str(error):
            raise
        raise killed_worker(str(error)) from error
    finally:
        # PyTorch raises in the main thread, wherever that is, when a process that it knows of is killed.
        if iterator._worker_pids_set:
            signal_handling._remove_worker_pids(id(iterator))
            iterator._worker_pids_set = False
        for worker in iterator._workers:
            worker.kill()  # it ignores other signals, and may hang in a data set
        iterator._shutdown_workers()


class _Applied(Dataset[Any]):
    """The result of a function for a data set and a position."""

    def __init__(self, dataset: Any, function: Callable[[Any, int], Any]) -> None:
        self.dataset, self.function = dataset, function

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        return self.function(self.dataset, position)


def _as_it_is(value: Any) -> Any:
    return value


def _look(task: Task, foreign: bool, dataset: Any, position: int) -> Survey:
    """Return the survey of one sample."""
    seen = Survey(len(dataset), read=1)
    if foreign:
        seed_all(sample_seed(task.lock.seed, 0, position))
    try:
        item = checked(dataset[position], name_of(dataset, position))
        seen.count(task.amounts(item["image"], item["target"], item["name"]))
        _measure(dataset, position, item["image"], seen)
    except Exception as error:  # a data set of the user's may raise anything
        seen.note(as_finding(error, name_of(dataset, position)))
    return seen


def _measure(dataset: Any, position: int, image: Any, seen: Survey) -> None:
    """Record size, channels and values of an image."""
    finest = image[0] if isinstance(image, list) else image
    size: tuple[int, ...] = ()
    channels = type(finest).__name__
    read = getattr(dataset, "header", None)
    if read is not None:
        header = read(position)
        size, channels = header.size, header.mode
        seen.turned += header.orientation != 1
        seen.transparent += header.transparent
    elif isinstance(finest, torch.Tensor) and finest.dim() > 2:
        size, channels = tuple(reversed(finest.shape[1:])), str(finest.shape[0])
    seen.sizes[size] += 1
    seen.channels[channels] += 1
    if isinstance(finest, torch.Tensor) and finest.dim() > 2 and finest.numel():
        seen.blank += bool(finest.min() == finest.max())
    for tensor in pytree.tensors(image):
        if tensor.numel():
            seen.low = min(seen.low, float(tensor.min()))
            seen.high = max(seen.high, float(tensor.max()))


def search(
    dataset: Any, task: Task, positions: Iterable[int], seconds: float | None, apart: bool = False
) -> tuple[bool, int]:
    """Return whether any target has foreground, and the number of targets read until one was found.

    Targets that cannot be read count as empty. Data sets with `target(index)` decode no images for this.
    """
    number, begun = 0, time.monotonic()
    for found in each(dataset, partial(_has_foreground, task), positions, apart):
        watchdog.mark()
        number += 1
        if found:
            return True, number
        if seconds is not None and time.monotonic() - begun > seconds:
            break
    return False, number


def _has_foreground(task: Task, dataset: Any, position: int) -> bool:
    reads: list[Callable[[int], Any]] = [lambda index: checked(dataset[index], "")["target"]]
    own = getattr(dataset, "target", None)
    if callable(own):  # of the user's it may be anything
        reads.insert(0, own)
    for read in reads:
        try:
            amounts = task.amounts(None, read(position), name_of(dataset, position))
        except Exception:  # a sample that cannot be read was or will be reported as such
            continue
        return any(amounts.get(number) for number in task.foreground)
    return False


def no_foreground(split: str, samples: int) -> RuntimeFinding:
    """Return R571: no sample of a split has any foreground or object."""
    return RuntimeFinding(
        "R571",
        f"no sample of {split} has any foreground or object",
        f"read: {counted(samples, 'sample')}; a model would learn to predict nothing, and scores would mean nothing",
        "look at the masks or annotations: `ratc data check SPEC --all` draws some of them; check that "
        "data.num_classes and data.ignore_index fit the values of the files",
    )


def no_foreground_yet(split: str, read: int, samples: int) -> RuntimeFinding:
    """Return R571, as a warning: the samples read within the time limit have no foreground or object."""
    return RuntimeFinding(
        "R571",
        f"the first {read} of {samples} samples of {split} have no foreground or object; the others were not read",
    )


def transparent_finding(split: str, seen: Survey) -> RuntimeFinding | None:
    """Return R579 for images with transparent pixels; None if there are none."""
    if not seen.transparent:
        return None
    return RuntimeFinding(
        "R579",
        f"{seen.transparent} of {seen.read} images of {split} that were read are partly transparent, and their alpha "
        f"channel is not used",
        "a transparent pixel gets the colour in its file, not the colour of a background",
        "put the images on a background of your choice, and save them without alpha channel",
    )


def blank_images(split: str, seen: Survey, task: Task) -> RuntimeFinding | None:
    """Return R592 for images of one value only; None if there are none.

    A patch of a volume may lie outside of the body, so of volumes all that were read must be blank.
    """
    good = seen.read - seen.bad
    if not seen.blank or (task.lock.spatial_dims == 3 and seen.blank < good):
        return None
    return RuntimeFinding(
        "R592",
        f"{seen.blank} of {seen.read} images of {split} that were read hold one value only",
        "a model can learn nothing from a blank image, even if it has a mask, boxes or a class",
        "look at the pictures of `ratc data check SPEC`; a window in other units makes volumes blank, and a "
        "conversion from 16 bits makes pictures blank",
    )


def absent_classes(split: str, seen: Survey, task: Task) -> RuntimeFinding | None:
    """Return R572 for the classes that no sample read has; None if there are none."""
    labels = {**task.background, **task.class_labels}
    absent = [f"`{label}`" for number, label in labels.items() if not seen.holders[number]]
    if not absent or not seen.read or seen.bad == seen.read:
        return None
    said = f"{', '.join(absent[:20])} never {'occurs' if len(absent) == 1 else 'occur'}"
    return RuntimeFinding("R572", f"{said} in the {seen.read} samples of {split} that were read")


def first_look(datasets: Mapping[str, Any], task: Task, world: World, foreign: bool, apart: bool = False) -> None:
    """Check a few samples of each split before the first step. Every rank calls this, and reads its share.

    `datasets` are by split, with several tasks by `split/task`. Raises on every rank the finding of the first bad
    sample (unless bad samples are skipped and some are good), and R571 for a split without any foreground. Warns of
    images that are in two splits, as far as they are compared within the time limit.
    """
    for name, dataset in datasets.items():
        part = task.parts.get(name.partition("/")[2], task)
        mine = spread(len(dataset), FIRST_SAMPLES, part.lock.seed)[world.rank :: world.size]
        seen = Survey(len(dataset))
        for one in world.gather(survey(dataset, part, mine, FIRST_SECONDS, foreign, apart)):
            seen.add(one)
        if seen.problems and (part.lock.data.on_bad_sample == "fail" or (seen.bad == seen.read and seen.read > 1)):
            first = seen.problems[0]
            raise RuntimeFinding(first.code, first.message, first.note, first.help)
        for warning in (transparent_finding(name, seen), blank_images(name, seen, part)):
            if world.main and warning is not None:
                warn_of(warning)
        if seen.read and part.foreground and not any(seen.holders[number] for number in part.foreground):
            _search_everywhere(name, dataset, part, world, apart)
        known = getattr(dataset, "class_holders", None)
        if known is not None:  # its targets are in memory, so every sample is known
            seen = Survey(len(dataset), read=len(dataset), holders=known())
        if world.main and seen.complete and any(seen.holders[number] for number in part.foreground):
            absent = absent_classes(name, seen, part)
            if absent is not None:
                warn_of(absent)
    for kind in (task.parts or {"": task}) if world.main else ():
        of_part = {name: one for name, one in datasets.items() if name.partition("/")[2] == kind}
        for copies in between_splits(of_part, FIRST_SECONDS):
            warn_of(copies)


def _search_everywhere(name: str, dataset: Any, task: Task, world: World, apart: bool) -> None:
    """Search the whole split for any foreground. Raise R571 if it has none, warn if time runs out."""
    mine = range(world.rank, len(dataset), world.size)
    found = world.gather(search(dataset, task, mine, SEARCH_SECONDS, apart))
    number = sum(read for _, read in found)
    if any(yes for yes, _ in found):
        return
    if number >= len(dataset) and not task.lock.debug:  # a debug run has a few of the samples only
        raise no_foreground(name, number)
    if world.main:
        warn_of(no_foreground_yet(name, number, len(dataset)))
