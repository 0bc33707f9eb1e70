"""Dice and IoU over a whole split, from summed counts, and the trivial baseline to compare them with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ratc_runtime.distributed import World


@dataclass(frozen=True)
class Score:
    """Overlap of prediction and truth, each in [0, 1]; 1 where both are empty."""

    dice: float
    iou: float


def counts(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return true positives, false positives and false negatives per sample: (B, 3), float64.

    A pixel is predicted where its logit is above zero, true where the target is at least half.
    """
    predicted, true = logits.flatten(1) > 0, target.flatten(1) >= 0.5
    pairs = (predicted & true, predicted & ~true, ~predicted & true)
    return torch.stack([pair.sum(1) for pair in pairs], dim=1).double()


def score(totals: torch.Tensor) -> Score:
    """Turn summed counts (3,) into scores. An average of the batches' scores would weigh small masks too much."""
    hit, extra, missed = (float(value) for value in totals)
    union = hit + extra + missed
    if union == 0:
        return Score(1.0, 1.0)
    return Score(2 * hit / (2 * hit + extra + missed), hit / union)


class Overlap:
    """Dice and IoU of one split, from counts over all of its pixels."""

    def __init__(self) -> None:
        self._totals = torch.zeros(3, dtype=torch.float64)

    def add(self, output: torch.Tensor, target: torch.Tensor) -> None:
        """Count logits and targets (B, 1, H, W)."""
        self._totals += counts(output, target).sum(0).cpu()

    def scores(self, world: World) -> dict[str, float]:
        """Return `dice` and `iou` over all ranks."""
        found = score(world.sum(self._totals))
        return {"dice": found.dice, "iou": found.iou}


def baseline_mask(total: torch.Tensor, count: float) -> tuple[torch.Tensor, float]:
    """Return the best fixed prediction, (1, H, W) bool, and its threshold, from the sum of `count` masks.

    The mean mask is cut at the threshold that gives the best Dice on those very masks. The sum is enough: over
    all images the true positives of a threshold are the sum of the total where the mean reaches it.
    """
    levels, position = torch.sort(total.double().flatten(), descending=True)
    size = torch.arange(1, levels.numel() + 1, dtype=torch.float64, device=levels.device)
    dice = 2 * levels.cumsum(0) / (size * count + levels.sum()).clamp(min=1e-12)
    # Pixels of one level belong together: only the last of them is a threshold.
    last = torch.cat([levels[1:] != levels[:-1], torch.ones(1, dtype=torch.bool, device=levels.device)])
    best = int(torch.where(last, dice, torch.full_like(dice, -1.0)).argmax())
    mask = torch.zeros(levels.numel(), dtype=torch.bool, device=levels.device)
    mask[position[: best + 1]] = True
    return mask.reshape(total.shape), float(levels[best] / count)
