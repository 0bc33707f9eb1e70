"""Losses of classification, by name: logits (B, K) and class numbers (B,) to a scalar."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.sizes import counted
from ratc_runtime.tasks.classification.metrics import check_logits


class CrossEntropy(nn.Module):
    """Cross-entropy of each sample, averaged over samples.

    `class_weights`, one number for each class, multiply the losses of its samples. The sum is divided by the number of
    samples, not by the sum of their weights as torch does it: a batch in several micro-batches, or over several
    processes, has the gradient of the whole one. `label_smoothing` is the share of the target that is spread evenly
    over all classes, from 0 to below 1 (Szegedy et al., CVPR 2016). Raises R509 for weights that are not one number
    from 0 on for each class, ValueError for a share out of range.
    """

    class_weights: torch.Tensor | None

    def __init__(
        self, classes: int, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.classes = classes
        if class_weights is not None:
            _check_weights(class_weights, classes)
        if not _is_number(label_smoothing) or not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing!r:.40}, expected a number from 0 to below 1")
        self.label_smoothing = float(label_smoothing)
        weights = None if class_weights is None else torch.tensor([float(weight) for weight in class_weights])
        # Moves along to the device; no checkpoint holds it, for it follows from the lock.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = check_logits(logits, target, self.classes).float()
        losses = F.cross_entropy(
            logits, target, weight=self.class_weights, reduction="none", label_smoothing=self.label_smoothing
        )
        return losses.mean()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_weights(weights: Sequence[float], classes: int) -> None:
    """Raise R509 unless there is a number from 0 on for each class, and one above 0."""
    found = list(weights) if isinstance(weights, (list, tuple)) else None
    if (
        found is not None
        and len(found) == classes
        and all(_is_number(one) and one >= 0 for one in found)
        and any(found)
    ):
        return
    given = counted(len(found), "value") if found is not None and len(found) != classes else f"{weights!r:.60}"
    raise RuntimeFinding(
        "R509",
        f"loss cross_entropy: class_weights has {given}, expected {classes} numbers from 0 on",
        help="give one weight for each class, in the order of their numbers",
    )


#: Called with `classes` beside their arguments.
LOSSES: dict[str, Callable[..., nn.Module]] = {"cross_entropy": CrossEntropy}
