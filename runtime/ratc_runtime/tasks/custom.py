"""A task with a loss and scores of the user's, and no other assumptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import default_collate

from ratc_runtime.config.lock import Lock
from ratc_runtime.data import pytree
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.import_callable import call, resolve
from ratc_runtime.tasks import Metric
from ratc_runtime.tasks.arrays import ArrayWriter
from ratc_runtime.tasks.base import Task

#: Returns a number for outputs and targets of one sample, as batches of one; larger is better.
Score = Callable[[Any, Any], float]


class Custom(Task):
    """Model, data and loss are the user's. Targets are anything that `default_collate` accepts."""

    losses: ClassVar[Mapping[str, Callable[..., nn.Module]]] = {}

    def __init__(self, lock: Lock, scores: Mapping[str, Score] | None = None) -> None:
        super().__init__(lock)
        self._scores = dict(scores or {})
        self._sample: tuple[Any, Any] | None = None
        self.metrics = {name: Metric(name) for name in self._scores}

    def model(self, backbone: nn.Module) -> nn.Module:
        """Raise R509: there is no head for RAT's features."""
        raise RuntimeFinding(
            "R509", "a custom task has no head for RAT", help="name a model of your own, package.module:callable"
        )

    def collate(self, targets: Sequence[Any]) -> Any:
        """Return the targets stacked, in mappings and lists too."""
        return default_collate(list(targets))

    def example_target(self, count: int, device: torch.device) -> Any:
        """Raise NotImplementedError: `example` gives targets together with their inputs."""
        raise NotImplementedError

    def example(self, count: int, device: torch.device) -> tuple[Any, Any]:
        """Return `count` times the sample that the data set's `example(**args)` gives, without reading data.

        Raises NotImplementedError if the data set has none: a rehearsal is then skipped, and a trace reports it.
        """
        if self._sample is None:
            self._sample = self._asked()
        image, target = self._sample
        batch = default_collate([image] * count), self.collate([target] * count)
        return pytree.to_device(batch[0], device), pytree.to_device(batch[1], device)

    def _asked(self) -> tuple[Any, Any]:
        """Return the input and the target of the data set's example."""
        data = self.lock.data
        dataset = resolve("dataset", data.dataset) if ":" in (data.dataset or "") else None
        function = getattr(dataset, "example", None)
        if not callable(function):
            raise NotImplementedError(
                f"the inputs of a custom task are not known: give {data.dataset} a static method example, which takes"
                " `data.args` and returns one sample"
            )
        sample = call("dataset", f"{data.dataset}.example", function, **(data.args or {}))
        return (sample["image"], sample["target"]) if isinstance(sample, Mapping) else tuple(sample)

    def writer(self, folder: Path, threshold: float) -> ArrayWriter:
        """Return the writer of outputs as arrays; there is nothing to be cut at `threshold`."""
        return ArrayWriter(folder)

    def scorer(self) -> Mean:
        """Return the mean over samples of each score."""
        return Mean(self._scores)


class Mean:
    """The mean of scores over the samples of a split."""

    def __init__(self, scores: Mapping[str, Score]) -> None:
        self._functions = scores
        self._totals = torch.zeros(len(scores) + 1, dtype=torch.float64)

    def add(self, output: Any, target: Any) -> None:
        """Score each sample separately, so that padding and batch sizes do not matter."""
        count = next(len(tensor) for tensor in pytree.tensors(output))
        for row in range(count):
            one = pytree.select(output, [row]), pytree.select(target, [row])
            values = [float(function(*one)) for function in self._functions.values()]
            self._totals += torch.tensor([*values, 1.0], dtype=torch.float64)

    def scores(self, world: World) -> dict[str, float]:
        """Return the means over all ranks."""
        *sums, count = world.sum(self._totals).tolist()
        return {name: total / max(1.0, count) for name, total in zip(self._functions, sums, strict=True)}
