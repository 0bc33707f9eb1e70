"""A task with a loss and scores of the user's, and no other assumptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from ratc_runtime.config.lock import Lock
from ratc_runtime.data import pytree
from ratc_runtime.data.samples import parts
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.import_callable import call, resolve
from ratc_runtime.tasks import Metric
from ratc_runtime.tasks.arrays import ArrayWriter
from ratc_runtime.tasks.base import Task
from ratc_runtime.tasks.own_scores import Mean, Score


class Custom(Task):
    """Model, data and loss are the user's. Targets are anything that `default_collate` accepts."""

    def __init__(self, lock: Lock, scores: Mapping[str, Score] | None = None) -> None:
        super().__init__(lock)
        self._scores = dict(scores or {})
        self._sample: tuple[Any, Any] | None = None
        self.metrics = {name: Metric(name) for name in (*lock.evaluation.scores, *self._scores)}

    def model(self, backbone: nn.Module) -> nn.Module:
        """Raise R509: there is no head for RAT's features."""
        raise RuntimeFinding(
            "R509", "a custom task cannot use the model `rat`", help="name a model of your own, package.module:callable"
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
        Raises ValueError if it is not a sample.
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
        return parts(call("dataset", f"{data.dataset}.example", function, data.args or {}))

    def writer(self, folder: Path, threshold: float) -> ArrayWriter:
        """Return the writer of outputs as arrays. `threshold` has no effect."""
        return ArrayWriter(folder)

    def scorer(self) -> Mean:
        """Return the mean over samples of each score."""
        return Mean(self._scores)
