"""The data of several tasks in one run: each position has a sample of every task. Evaluation reads tasks apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.folds import divide
from ratc_runtime.data.loading import Loader, evaluation_loader
from ratc_runtime.data.samples import Checked, as_finding, checked, name_of
from ratc_runtime.data.sources import open_split

if TYPE_CHECKING:
    from ratc_runtime.tasks.base import Task


class Joint:
    """A data set as long as the longest of its parts. The shorter ones repeat.

    An item's `image` and `target` are mappings by task. The samples of a batch change with each epoch, because the
    order of positions does. The tasks' samples at one position stay the same.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)
        lengths = [len(part) for part in self.parts.values()]
        self._length = max(lengths) if min(lengths) else 0
        self.missing = [f"{name} {one}" for name, part in self.parts.items() for one in getattr(part, "missing", ())]

    def __len__(self) -> int:
        return self._length

    @property
    def names(self) -> _Names:
        """The names of the samples, by position."""
        return _Names(self)

    def __getitem__(self, index: int) -> Checked:
        if not 0 <= index < self._length:
            raise IndexError(index)
        items = {name: self._item(name, part, index % len(part)) for name, part in self.parts.items()}
        return Checked(
            image={name: item["image"] for name, item in items.items()},
            target={name: item["target"] for name, item in items.items()},
            name=self.name(index),
        )

    def _item(self, name: str, part: Any, index: int) -> Checked:
        try:
            return checked(part[index], name_of(part, index))
        except Exception as error:  # a data set of the user's may raise anything
            raise as_finding(error, f"{name} {name_of(part, index)}") from error

    def name(self, index: int) -> str:
        """Return the joint name of the samples at a position."""
        return " + ".join(f"{name} {name_of(part, index % len(part))}" for name, part in self.parts.items())


class _Names:
    """The names of a joint data set, made on access."""

    def __init__(self, joint: Joint) -> None:
        self._joint = joint

    def __len__(self) -> int:
        return len(self._joint)

    def __getitem__(self, index: int) -> str:
        return self._joint.name(index)


class JointLoader:
    """The evaluation loaders of the tasks of a split, used one after the other."""

    def __init__(self, dataset: Any, parts: Mapping[str, Loader]) -> None:
        self.dataset, self.parts = dataset, dict(parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts.values())

    @property
    def leaves(self) -> list[Loader]:
        """The loaders that read data."""
        return list(self.parts.values())


def open_data_set(lock: Lock, data_dir: Path, split: str) -> Any:
    """Return the data set of a split, of one task or joined of several. With folds, train and val are
    those of the lock's fold. Raises the errors of `sources.open_split` and `folds.divide`.
    """
    folds = lock.data.folds
    if folds is not None and split != "test":
        both = [open_split(lock, data_dir, one) for one in ("train", "val")]
        return divide(both, folds, by_file=lock.data.dataset == "volumes")[split == "val"]
    if not lock.tasks:
        return open_split(lock, data_dir, split)
    return Joint(
        {name: open_split(lock.part(name), data_dir / part.data.folder, split) for name, part in lock.tasks.items()}
    )


def open_evaluation(dataset: Any, lock: Lock, rank: int, task: Task) -> Loader | JointLoader:
    """Return the evaluation loader of a split, or a `JointLoader` for several tasks. Raises R506."""
    if not task.parts:
        return evaluation_loader(dataset, lock, rank, task.collate)
    return JointLoader(
        dataset,
        {
            name: evaluation_loader(dataset.parts[name], part.lock, rank, part.collate)
            for name, part in task.parts.items()
        },
    )


def flat(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data sets that read files. With several tasks the keys are `split/task`."""
    return {
        f"{split}/{name}" if name else split: part
        for split, dataset in datasets.items()
        for name, part in _parts(dataset)
    }


def _parts(dataset: Any) -> Iterator[tuple[str, Any]]:
    yield from dataset.parts.items() if isinstance(dataset, Joint) else (("", dataset),)


def joined(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data sets by split: the inverse of `flat`."""
    found: dict[str, dict[str, Any]] = {}
    for key, dataset in datasets.items():
        split, _, name = key.partition("/")
        found.setdefault(split, {})[name] = dataset
    return {split: parts[""] if "" in parts else Joint(parts) for split, parts in found.items()}
