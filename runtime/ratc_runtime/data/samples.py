"""One sample between data set and batch: its form, its checks, and the handling of a bad one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from ratc_runtime.data.randomness import all_kept, sample_seed, seed_all
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.sizes import counted

HELP = "repair it, or set `data.on_bad_sample: skip` in the spec and compile again"


class Checked(dict[str, Any]):
    """A checked item: `image`, `target` and `name`, with arrays converted to tensors."""


class Draw(NamedTuple):
    """A loader's request: a position of the split in an epoch. Evaluation has no epoch."""

    epoch: int | None
    position: int


@dataclasses.dataclass(slots=True)
class Sample:
    """A loader process's result for a draw. With a `problem`, image and target are missing.

    `weight` is 0 if the sample is not scored (padding, or a replacement), else 1; `position` is its index in the split;
    `skipped` names the bad samples that it replaces.
    """

    image: Any
    target: Any
    weight: float
    position: int
    name: str
    skipped: list[str]
    problem: RuntimeFinding | None = None


class Guarded(Dataset[Sample]):
    """A data set that answers every draw: bad samples become findings, or are replaced by their successor.

    A position at or past the length is padding: that sample again, with weight 0. Workers return a finding as a value,
    because an exception would lose its fields on the way to the main process. `augment(image, target, seed)` is applied
    if the draw has an epoch. `foreign` data sets may draw random numbers, which are seeded from seed, epoch and
    position too.
    """

    def __init__(
        self,
        dataset: Any,
        skip: bool,
        seed: int,
        augment: Callable[[Any, Any, int], tuple[Any, Any]] | None = None,
        foreign: bool = False,
    ) -> None:
        self.dataset, self.skip, self.seed = dataset, skip, seed
        self.augment, self.foreign = augment, foreign
        self.length = len(dataset)

    def __getitem__(self, draw: Draw) -> Sample:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample]:
        """Return the samples of a batch. torch's loaders call this method if it exists.

        The random state is restored, except in a loader process, in which nothing else uses it.
        """
        if not self.foreign or get_worker_info() is not None:
            return [self._sample(draw) for draw in draws]
        with all_kept():
            return [self._sample(draw) for draw in draws]

    def _sample(self, draw: Draw) -> Sample:
        position = draw.position % self.length
        weight = 1.0 if draw.position < self.length else 0.0
        seed = sample_seed(self.seed, draw.epoch or 0, position)
        skipped: list[str] = []
        for step in range(self.length):
            current = (position + step) % self.length
            try:
                item = self._read(current, seed)
            except Exception as error:  # a dataset of the user's may raise anything
                finding = as_finding(error, self._name(current))
                if not self.skip:
                    return Sample(None, None, weight, current, self._name(current), [], finding)
                skipped.append(self._name(current))
                if draw.epoch is None:
                    weight = 0.0  # a successor is scored under its own index
                continue
            image, target, name, problem = item["image"], item["target"], item["name"], None
            if self.augment is not None and draw.epoch is not None:
                try:
                    image, target = self.augment(image, target, seed)
                except RuntimeFinding as finding:  # the error is in the spec, not in the sample
                    problem = with_note(finding, f"sample {name}")
            return Sample(image, target, weight, current, name, skipped, problem)
        nothing = RuntimeFinding("R506", "every sample of the split is bad", f"the first is {self._name(0)}")
        return Sample(None, None, weight, position, self._name(position), skipped, nothing)

    def _read(self, index: int, seed: int) -> Checked:
        if self.foreign:
            seed_all(seed)
        return checked(self.dataset[index], self._name(index))

    def _name(self, index: int) -> str:
        return name_of(self.dataset, index)


def with_note(finding: RuntimeFinding, note: str) -> RuntimeFinding:
    """Return the finding with one more line in its note."""
    notes = f"{finding.note}\n{note}" if finding.note else note
    return RuntimeFinding(finding.code, finding.message, notes, finding.help, everywhere=False)


def name_of(dataset: Any, index: int) -> str:
    """Return the name of a sample, from the data set's `names` if it has them."""
    names = getattr(dataset, "names", None)
    return str(names[index]) if names is not None else f"sample {index}"


def checked(item: Any, name: str) -> Checked:
    """Return image, target and name of a data set's item, with arrays as tensors and every number finite.

    Raises ValueError if it is not an item, or if a number in it is not finite.
    """
    if isinstance(item, Checked):
        return item
    image, target = parts(item)
    name = str(item.get("name", name)) if isinstance(item, Mapping) else name
    return Checked(image=_as_tensors(image, "image"), target=_as_tensors(target, "target"), name=name)


def parts(item: Any) -> tuple[Any, Any]:
    """Return image and target of an item: a mapping with `image`, `target` and optionally `name`, or a pair.

    Raises ValueError if it is neither.
    """
    if isinstance(item, Mapping) and {"image", "target"} <= item.keys():
        return item["image"], item["target"]
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    what = type(item).__name__
    if isinstance(item, Mapping):
        what = f"a {what} with {', '.join(map(str, item)) or 'no keys'}"
    raise ValueError(f"an item is a mapping with image and target, or a pair of them, not {what}")


def _as_tensors(value: Any, where: str) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor):
        # A sum is not finite if a number in it is not. It may also overflow, so the numbers are checked.
        if value.is_floating_point() and not math.isfinite(float(value.sum())):
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                raise ValueError(f"{where} has {counted(bad, 'number')} of {value.numel()} that are not finite")
        return value
    if isinstance(value, Mapping):
        return {key: _as_tensors(item, f"{where} {key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_as_tensors(item, where) for item in value]
    return value


def as_finding(error: Exception, name: str) -> RuntimeFinding:
    """Return the finding for a sample that cannot be loaded."""
    if isinstance(error, RuntimeFinding):
        return error
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return RuntimeFinding("R506", f"{name} cannot be loaded", f"{type(error).__name__}: {what}", HELP, everywhere=False)
