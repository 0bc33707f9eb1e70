"""Folds for cross-validation: the train and val samples of a data set, divided by a seed (`data.folds`)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from ratc_runtime.config.sections import Folds
from ratc_runtime.data.samples import name_of
from ratc_runtime.errors import RuntimeFinding

#: Methods of data sets that are asked for one sample.
_OF_A_SAMPLE = ("files", "header", "target", "whole")


class Part:
    """Some samples of several data sets, by data set and index. Methods about one sample are those of its data set;
    all other attributes are those of the first one.
    """

    def __init__(self, sources: Sequence[Any], chosen: Sequence[tuple[int, int]]) -> None:
        self.sources, self.chosen = list(sources), list(chosen)
        self.names = [name_of(sources[source], index) for source, index in chosen]
        self.missing = [name for source in sources for name in getattr(source, "missing", ())]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, position: int) -> Any:
        source, index = self.chosen[position]
        return self.sources[source][index]

    def _of_a_sample(self, name: str, position: int) -> Any:
        source, index = self.chosen[position]
        return getattr(self.sources[source], name)(index)

    def __getattr__(self, name: str) -> Any:
        if name in ("sources", "chosen") or name.startswith("__"):  # while it is unpickled
            raise AttributeError(name)
        if name in _OF_A_SAMPLE and all(hasattr(source, name) for source in self.sources):
            return partial(self._of_a_sample, name)
        if name in _OF_A_SAMPLE:
            raise AttributeError(name)
        return getattr(self.sources[0], name)


def divide(sources: Sequence[Any], folds: Folds, by_file: bool) -> tuple[Part, Part]:
    """Return the training and the validation samples of a fold, of all samples of some data sets.

    Samples of a group stay together: those with equal matches of `folds.group` in their names, or those of one file
    with `by_file` (the patches of a volume). Groups are drawn by `folds.seed` alone, so that the folds of one seed are
    disjoint, cover all samples, and differ in size by one group at most.

    Raises R506 if a name does not match, or if there are fewer groups than folds.
    """
    groups: dict[str, list[tuple[int, int]]] = {}
    for number, source in enumerate(sources):
        for index in range(len(source)):
            groups.setdefault(_group(source, number, index, folds, by_file), []).append((number, index))
    if len(groups) < folds.number:
        raise RuntimeFinding(
            "R506",
            f"{len(groups)} groups of samples cannot be divided into {folds.number} folds",
            help="set a smaller `data.folds.number`",
        )
    names = sorted(groups)
    random.Random(folds.seed).shuffle(names)
    held = {name for place, name in enumerate(names) if place % folds.number == folds.index}
    train = sorted(one for name in names if name not in held for one in groups[name])
    return Part(sources, train), Part(sources, sorted(one for name in held for one in groups[name]))


def _group(source: Any, number: int, index: int, folds: Folds, by_file: bool) -> str:
    name = name_of(source, index)
    if folds.group is not None:
        found = re.search(folds.group, name)
        if found is None:
            raise RuntimeFinding(
                "R506",
                f"the sample {name!r:.200} belongs to no group",
                f"data.folds.group: {folds.group} does not match",
            )
        return found[1] if found.re.groups else found[0]
    return str(source.files(index)[0]) if by_file else f"{name} {number} {index}"
