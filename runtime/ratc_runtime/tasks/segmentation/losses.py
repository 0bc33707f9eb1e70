"""Losses of segmentation, by name. All take the task's logits and targets, in 2D or 3D, and return a scalar.

One foreground class: logits and targets (B, 1, ...), targets 0 and 1. K classes: logits (B, K, ...), targets (B, ...)
of class numbers, 0 the background.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.tasks.outputs import tensor_of


class Bce(nn.Module):
    """Binary cross-entropy per pixel, averaged; `positive_weight` multiplies the foreground's part."""

    def __init__(self, positive_weight: float = 1.0) -> None:
        super().__init__()
        self.positive_weight = positive_weight

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _compare(logits, target.shape, target)
        logits, target = logits.float(), target.float()
        weight = logits.new_tensor(self.positive_weight)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)


class Dice(nn.Module):
    """One minus the soft Dice score of each sample, averaged over samples.

    `smooth`, in pixels, keeps an empty mask defined: an empty prediction has loss 0.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _compare(logits, target.shape, target)
        probability, target = logits.float().sigmoid().flatten(1), target.float().flatten(1)
        return _soft_dice(probability, target, self.smooth).mean()


class Combined(nn.Module):
    """`bce_weight` x cross-entropy + `dice_weight` x Dice: steady gradients and the reported score."""

    def __init__(self, bce_weight: float = 0.5, dice_weight: float = 0.5, smooth: float = 1.0) -> None:
        super().__init__()
        self.bce, self.dice = Bce(), Dice(smooth)
        self.bce_weight, self.dice_weight = bce_weight, dice_weight

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        bce, dice = self.bce(logits, target), self.dice(logits, target)
        return self.bce_weight * bce + self.dice_weight * dice


class CrossEntropy(nn.Module):
    """Cross-entropy over K classes, averaged over the pixels of a sample without `ignore_index`, then over samples.

    By sample, so that a batch in pieces has the gradient of the whole one. A sample with only ignored pixels has loss
    0.
    """

    def __init__(self, classes: int, ignore_index: int | None) -> None:
        super().__init__()
        self.classes, self.ignore_index = classes, ignore_index

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _compare(logits, (target.shape[0], self.classes, *target.shape[1:]), target)
        if self.ignore_index is None:
            return F.cross_entropy(logits.float(), target)
        loss = F.cross_entropy(logits.float(), target, ignore_index=self.ignore_index, reduction="none")
        counted = (target != self.ignore_index).flatten(1).sum(1).clamp(min=1)
        return (loss.flatten(1).sum(1) / counted).mean()


class ClassDice(nn.Module):
    """One minus the soft Dice score of each sample and foreground class, averaged over both.

    The background is left out: it is most of an image, and follows from the other classes. `smooth`, in pixels, keeps a
    class that a sample lacks defined: predicting none of it has loss 0.
    """

    def __init__(self, classes: int, ignore_index: int | None, smooth: float = 1.0) -> None:
        super().__init__()
        self.classes, self.ignore_index, self.smooth = classes, ignore_index, smooth

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _compare(logits, (target.shape[0], self.classes, *target.shape[1:]), target)
        probability = logits.float().softmax(1)[:, 1:].flatten(2)  # (B, K - 1, pixels)
        wanted = torch.arange(1, self.classes, device=target.device).view(1, -1, 1)
        true = (target.flatten(1)[:, None] == wanted).float()
        if self.ignore_index is not None:
            probability = probability * (target != self.ignore_index).flatten(1)[:, None]
        return _soft_dice(probability, true, self.smooth).mean()


class ClassCombined(nn.Module):
    """`cross_entropy_weight` x cross-entropy + `dice_weight` x Dice over the foreground classes."""

    def __init__(
        self,
        classes: int,
        ignore_index: int | None,
        cross_entropy_weight: float = 0.5,
        dice_weight: float = 0.5,
        smooth: float = 1.0,
    ) -> None:
        super().__init__()
        self.cross_entropy = CrossEntropy(classes, ignore_index)
        self.dice = ClassDice(classes, ignore_index, smooth)
        self.cross_entropy_weight, self.dice_weight = cross_entropy_weight, dice_weight

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        entropy, dice = self.cross_entropy(logits, target), self.dice(logits, target)
        return self.cross_entropy_weight * entropy + self.dice_weight * dice


#: Of one foreground class.
BINARY: dict[str, Callable[..., nn.Module]] = {"bce": Bce, "dice": Dice, "combined": Combined}
#: Of two and more classes; called with `classes` and `ignore_index` beside their arguments.
MULTI: dict[str, Callable[..., nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "dice": ClassDice,
    "combined": ClassCombined,
}


def _soft_dice(probability: torch.Tensor, target: torch.Tensor, smooth: float) -> torch.Tensor:
    """Return one minus soft Dice over the last dimension."""
    overlap = (probability * target).sum(-1)
    total = probability.sum(-1) + target.sum(-1)
    return 1.0 - (2.0 * overlap + smooth) / (total + smooth)


def _compare(logits: torch.Tensor, expected: tuple[int, ...], target: torch.Tensor) -> None:
    """Raise R574 unless the logits are a tensor, R538 unless they have the `expected` shape."""
    if tuple(tensor_of(logits).shape) != tuple(expected):
        raise RuntimeFinding(
            "R538",
            f"the model gives logits of shape {_shape(logits.shape)}, the targets ask for {_shape(expected)}",
            f"the targets are {_shape(target.shape)}; in both, the first number is the batch",
            "one foreground class has logits and targets (B, 1, ...); K classes have logits (B, K, ...) and targets"
            " (B, ...)",
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
