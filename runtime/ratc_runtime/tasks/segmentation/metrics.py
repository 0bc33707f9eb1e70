"""Dice and IoU over a whole split, from summed counts, and the trivial baseline for comparison.

Everything here is of class numbers, (B, ...) in 2D or 3D: 0 is the background, and one foreground class is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ratc_runtime.distributed.world import World
from ratc_runtime.tasks.outputs import tensor_of
from ratc_runtime.tasks.segmentation.hausdorff import Hausdorff


@dataclass(frozen=True)
class Score:
    """Overlap of prediction and truth, each in [0, 1]; NaN if both are empty."""

    dice: float
    iou: float


def labels(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted and the true class numbers, both (B, ...), from logits and targets.

    With one foreground class both are (B, 1, ...): a pixel is predicted if its logit is above zero, true if the target
    is at least half. With K classes the logits are (B, K, ...), the targets (B, ...). Raises R574 for an output that is
    no tensor.
    """
    output = tensor_of(output)
    if output.dim() == target.dim():
        return (output[:, 0] > 0).long(), (target[:, 0] >= 0.5).long()
    return output.argmax(1), target


def counts(
    predicted: torch.Tensor, true: torch.Tensor, classes: int = 2, ignore_index: int | None = None
) -> torch.Tensor:
    """Return true positives, false positives and false negatives per sample and foreground class.

    The result is (B, classes - 1, 3), float64. Pixels whose truth is `ignore_index` are left out.
    """
    counted = None if ignore_index is None else true != ignore_index
    rows = []
    for number in range(1, classes):
        found, wanted = predicted == number, true == number
        if counted is not None:
            found = found & counted
        pairs = (found & wanted, found & ~wanted, ~found & wanted)
        rows.append(torch.stack([pair.flatten(1).sum(1) for pair in pairs], dim=1))
    return torch.stack(rows, dim=1).double()


def score(totals: torch.Tensor) -> Score:
    """Return the scores of summed counts (3,). An average of the batches' scores would weigh small masks too much."""
    hit, extra, missed = (float(value) for value in totals)
    union = hit + extra + missed
    if union == 0:
        return Score(math.nan, math.nan)
    return Score(2 * hit / (2 * hit + extra + missed), hit / union)


def mean_score(totals: torch.Tensor) -> Score:
    """Return the mean over classes of summed counts (classes, 3). A class that is neither present nor predicted is left
    out; NaN if none remains.
    """
    found = [score(row) for row in totals if row.sum() > 0] or [Score(math.nan, math.nan)]
    return Score(sum(one.dice for one in found) / len(found), sum(one.iou for one in found) / len(found))


class Overlap:
    """Dice and IoU of one split, from counts over all of its pixels, and distances if `hausdorff` is given.

    `names` are those of the foreground classes; with several of them each has its own scores too.
    """

    def __init__(
        self, names: Sequence[str], ignore_index: int | None = None, hausdorff: Hausdorff | None = None
    ) -> None:
        self.names, self.ignore_index, self.hausdorff = list(names), ignore_index, hausdorff
        self._totals = torch.zeros(len(self.names), 3, dtype=torch.float64)

    def add(self, output: torch.Tensor, target: torch.Tensor) -> None:
        """Count a batch: logits and targets as the task has them, (B, 1 or K, ...) and (B, 1, ...) or (B, ...)."""
        predicted, true = labels(output, target)
        self._totals += counts(predicted, true, len(self.names) + 1, self.ignore_index).sum(0).cpu()
        if self.hausdorff is not None:
            self.hausdorff.add(predicted, true)

    def scores(self, world: World) -> dict[str, float]:
        """Return the scores over all ranks: `dice` and `iou`, means over the foreground classes.

        With several classes also `dice/<name>` and `iou/<name>`. They are NaN, and left out of the means, for a class
        that is neither present nor predicted.
        """
        totals = world.sum(self._totals)
        found = mean_score(totals)
        scores = {"dice": found.dice, "iou": found.iou}
        if len(self.names) > 1:
            for name, row in zip(self.names, totals, strict=True):
                one = score(row)
                scores |= {f"dice/{name}": one.dice, f"iou/{name}": one.iou}
        if self.hausdorff is not None:
            scores |= self.hausdorff.scores(world)
        return scores


def baseline_mask(total: torch.Tensor, count: float) -> tuple[torch.Tensor, float]:
    """Return the best fixed prediction of one foreground class, bool, and its threshold in [0, 1].

    `total` is the sum of `count` masks of 0 and 1, of any shape; the prediction has the same shape.

    The mean mask is cut at the threshold with the best Dice on the same masks. The sum is enough: over all images the
    true positives of a threshold are the sum of `total` over the pixels whose mean reaches it. Without any foreground
    the prediction is empty and the threshold NaN.
    """
    if not bool(total.any()):
        return torch.zeros_like(total, dtype=torch.bool), math.nan
    levels, position = torch.sort(total.double().flatten(), descending=True)
    size = torch.arange(1, levels.numel() + 1, dtype=torch.float64, device=levels.device)
    dice = 2 * levels.cumsum(0) / (size * count + levels.sum()).clamp(min=1e-12)
    # Pixels of one level belong together: only the last of them is a threshold.
    last = torch.cat([levels[1:] != levels[:-1], torch.ones(1, dtype=torch.bool, device=levels.device)])
    best = int(torch.where(last, dice, torch.full_like(dice, -1.0)).argmax())
    mask = torch.zeros(levels.numel(), dtype=torch.bool, device=levels.device)
    mask[position[: best + 1]] = True
    return mask.reshape(total.shape), float(levels[best] / count)
