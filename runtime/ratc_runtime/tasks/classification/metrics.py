"""Accuracy and F1 over a whole split and all ranks, from one confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.tasks.outputs import tensor_of


def check_logits(output: object, target: torch.Tensor, classes: int) -> torch.Tensor:
    """Return an output that must be logits (B, classes); raise R574 if it is not a tensor, R538 for another shape."""
    logits = tensor_of(output, "classification")
    wanted = (len(target), classes)
    if tuple(logits.shape) != wanted:
        shape = "x".join(map(str, logits.shape))
        raise RuntimeFinding(
            "R538",
            f"the model gives logits of shape {shape}, and classification needs {wanted[0]}x{wanted[1]}",
            "the first number is the batch, the second data.num_classes",
            "let the model return one logit for each class, (B, K)",
        )
    return logits


class Confusion:
    """Counts of each pair of true and predicted class; `names` are those of the classes."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._counts = torch.zeros(len(self.names), len(self.names), dtype=torch.float64)

    def add(self, output: torch.Tensor, target: torch.Tensor) -> None:
        """Count logits (B, K) and class numbers (B,)."""
        found = check_logits(output, target, len(self.names)).argmax(1)
        pairs = torch.bincount(target * len(self.names) + found, minlength=self._counts.numel())
        self._counts += pairs.reshape(self._counts.shape).double().cpu()

    def matrix(self, world: World) -> torch.Tensor:
        """Return the counts over all ranks (true, predicted), float64; every rank calls this."""
        return world.sum(self._counts)

    def scores(self, world: World) -> dict[str, float]:
        """Return `accuracy`, `macro_f1`, and `f1/NAME` of each class over all ranks."""
        return scores(self.matrix(world), self.names)


def scores(matrix: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return the scores of a confusion matrix (true, predicted), (K, K), in [0, 1].

    A class without a sample in the split has no F1, whether it is predicted or not; and `macro_f1`, the mean over all
    classes, is NaN if one of them has none: over fewer classes it would be another quantity. `accuracy` is the share of
    samples whose class was found; NaN if there are no samples.
    """
    hit, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    samples = float(true.sum())
    each = {
        name: 2 * float(hit[number]) / float(true[number] + predicted[number]) if true[number] > 0 else math.nan
        for number, name in enumerate(names)
    }
    return {
        "accuracy": float(hit.sum()) / samples if samples else math.nan,
        "macro_f1": sum(each.values()) / len(each),
        **{f"f1/{name}": value for name, value in each.items()},
    }
