"""Losses of binary segmentation, by name. All take logits and targets (B, 1, H, W) and return a scalar."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class Bce(nn.Module):
    """Binary cross-entropy per pixel, averaged; `positive_weight` multiplies the foreground's part."""

    def __init__(self, positive_weight: float = 1.0) -> None:
        super().__init__()
        self.positive_weight = positive_weight

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits, target = logits.float(), target.float()
        weight = logits.new_tensor(self.positive_weight)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)


class Dice(nn.Module):
    """One minus the soft Dice score of each sample, averaged over samples.

    `smooth`, in pixels, keeps an empty mask defined: predicting nothing there costs nothing.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        probability, target = logits.float().sigmoid().flatten(1), target.float().flatten(1)
        overlap = (probability * target).sum(1)
        total = probability.sum(1) + target.sum(1)
        return (1.0 - (2.0 * overlap + self.smooth) / (total + self.smooth)).mean()


class Combined(nn.Module):
    """`bce_weight` x cross-entropy + `dice_weight` x Dice: steady gradients and the score that is reported."""

    def __init__(self, bce_weight: float = 0.5, dice_weight: float = 0.5, smooth: float = 1.0) -> None:
        super().__init__()
        self.bce, self.dice = Bce(), Dice(smooth)
        self.bce_weight, self.dice_weight = bce_weight, dice_weight

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        bce, dice = self.bce(logits, target), self.dice(logits, target)
        return self.bce_weight * bce + self.dice_weight * dice  # type: ignore[no-any-return]


LOSSES: dict[str, Callable[..., nn.Module]] = {"bce": Bce, "dice": Dice, "combined": Combined}
