"""The loss of set prediction: focal classification, and L1 and generalised IoU of matched boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ratc_runtime.tasks.detection.boxes import generalized_iou, to_corners
from ratc_runtime.tasks.detection.matching import Costs, match
from ratc_runtime.tasks.outputs import mapping_with


class SetPrediction(nn.Module):
    """Weighted sum of the three parts, averaged over decoder layers and over samples.

    Every part is divided by the objects of *its own sample* (at least one), not by those of the batch as in DETR. So
    the loss of a batch is the mean of its samples' losses, and neither accumulation nor the number of processes changes
    the gradient. The cost: an object in a crowded image weighs less than a single one.

    In the last layer one query is matched to an object. In earlier ones, and in the output's `proposals`, if it has
    any, `repeats` queries are, and the parts are divided by their number: more queries learn at each step (the hybrid
    layers of Jia et al., "H-DETR", CVPR 2023). There are fewer if the queries do not suffice for all objects.

    `class_weight`, `l1_weight` and `giou_weight` weigh the parts, in the matching too; `alpha` and `gamma` are those of
    the focal loss (Lin et al., ICCV 2017). L1 is of centre and size as shares of the image. Raises ValueError unless
    `repeats` is a whole number from 1 on.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        repeats: int = 4,
    ) -> None:
        super().__init__()
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"repeats is {repeats!r}, expected a whole number from 1 on")
        self.costs = Costs(class_weight, l1_weight, giou_weight, alpha, gamma)
        self.repeats = repeats

    def forward(self, output: Mapping[str, Any], target: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Return a scalar for logits (B, L, Q, C) and boxes (B, L, Q, 4), and a target for each sample."""
        return sum(self.parts(output, target).values())  # type: ignore[return-value]  # there are three

    def parts(self, output: Mapping[str, Any], target: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the weighted parts as scalars by name: `class`, `l1` and `giou`. Shapes as in `forward`."""
        layers = mapping_with(output, ("logits", "boxes"))["logits"].shape[1]
        last = self._parts(output, target, [*([self.repeats] * (layers - 1)), 1])
        if "proposals" not in output:
            return {name: each / layers for name, each in last.items()}
        first = self._parts(output["proposals"], target, [self.repeats])
        return {name: (each + first[name]) / (layers + 1) for name, each in last.items()}

    def _parts(
        self, output: Mapping[str, torch.Tensor], target: Sequence[Mapping[str, Any]], repeats: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """Return each part as a sum over layers of means over samples."""
        costs, logits, boxes = self.costs, output["logits"].float(), output["boxes"].float()
        samples, _, queries = logits.shape[:3]
        counts = [max(1, len(one["labels"])) for one in target]
        copies = [[max(1, min(most, queries // count)) for most in repeats] for count in counts]
        found = match(logits.detach(), boxes.detach(), target, costs, copies)
        # The share of one pair of each sample and layer in the mean over samples.
        shares = [[1.0 / (count * copy * samples) for copy in row] for count, row in zip(counts, copies, strict=True)]
        share = torch.tensor(shares, device=logits.device)
        labels = torch.cat([one["labels"] for one in target])[found.truth]
        truth = torch.cat([one["boxes"] for one in target])[found.truth]
        goal = torch.zeros_like(logits)
        goal[found.sample, found.layer, found.query, labels] = 1.0
        focal = _focal(logits, goal, costs.alpha, costs.gamma).flatten(2).sum(2)
        chosen, weight = boxes[found.sample, found.layer, found.query], share[found.sample, found.layer]
        distance = (chosen - truth).abs().sum(-1)
        overlap = generalized_iou(to_corners(chosen), to_corners(truth))
        return {
            "class": costs.classification * (focal * share).sum(),
            "l1": costs.l1 * (distance * weight).sum(),
            "giou": costs.giou * ((1 - overlap) * weight).sum(),
        }


def _focal(logits: torch.Tensor, goal: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """Return the focal loss of each logit for the goal's 0 or 1."""
    entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    chance = logits.sigmoid()
    wrong = chance + goal - 2 * chance * goal
    return (alpha * goal + (1 - alpha) * (1 - goal)) * wrong**gamma * entropy


LOSSES: dict[str, Callable[..., nn.Module]] = {"set_prediction": SetPrediction}
