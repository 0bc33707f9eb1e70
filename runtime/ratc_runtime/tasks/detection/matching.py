"""The assignment of queries to objects with the least cost (Carion et al., ECCV 2020, "DETR")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch._subclasses.fake_tensor import FakeTensor

from ratc_runtime.tasks.detection.boxes import generalized_iou, to_corners

# The cost of NaN, above any other. The loss itself stays NaN, and the loop reports it.
_WORST = 1e6


class Matches(NamedTuple):
    """Matched pairs over all samples and decoder layers, each (M,) int64 on the device of the predictions."""

    sample: torch.Tensor
    layer: torch.Tensor
    query: torch.Tensor
    truth: torch.Tensor  # the object's number among those of all samples, one after the other


@dataclass(frozen=True)
class Costs:
    """Weights of the parts of the matching cost, and the form of the focal part."""

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def of(self, logits: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the cost (L, Q, N) of logits (L, Q, C) and boxes (L, Q, 4) for N labels and boxes (N, 4).

        The classification part is the focal loss of saying yes less that of saying no (Zhu et al., ICLR 2021).
        """
        chosen = logits[..., labels].sigmoid()
        yes = self.alpha * (1 - chosen) ** self.gamma * -(chosen + 1e-8).log()
        no = (1 - self.alpha) * chosen**self.gamma * -(1 - chosen + 1e-8).log()
        distance = (boxes[..., :, None, :] - truth).abs().sum(-1)
        overlap = generalized_iou(to_corners(boxes)[..., :, None, :], to_corners(truth))
        return self.classification * (yes - no) + self.l1 * distance - self.giou * overlap


@torch.no_grad()
def match(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    targets: Sequence[Any],
    costs: Costs,
    repeats: Sequence[Sequence[int]] | None = None,
) -> Matches:
    """Assign objects to queries, for every sample and decoder layer separately.

    `logits` (B, L, Q, C), `boxes` (B, L, Q, 4) as centres; `targets` as collated by the task; `repeats` (B, L), the
    number of queries per object, one if absent. If a sample has more objects than there are queries, the cheapest Q of
    them are matched.
    """
    layers = logits.shape[1]
    copies = [1] * (len(targets) * layers) if repeats is None else [count for row in repeats for count in row]
    shapes = [(layers, logits.shape[2], len(target["labels"])) for target in targets]
    if isinstance(logits, FakeTensor):
        # Traced without values: any assignment has the same shapes, so the first queries are taken. The costs are left
        # out: they are small, gone before backward, and computed sample by sample, where a trace wants the same
        # operations at every batch.
        asked = ((shapes[number // layers], count) for number, count in enumerate(copies))
        pairs = [np.tile(np.arange(min(shape[1], count * shape[2])), (2, 1)) for shape, count in asked]
    else:
        flat = torch.cat(
            [
                costs.of(logits[number], boxes[number], target["labels"], target["boxes"]).flatten()
                for number, target in enumerate(targets)
            ]
        )
        # One copy from the device, and so one wait for it.
        values = torch.nan_to_num(flat.float(), _WORST, _WORST, -_WORST).cpu().numpy()
        parts = np.split(values, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
        matrices = [cost for part, shape in zip(parts, shapes, strict=True) for cost in part.reshape(shape)]
        pairs = [
            np.stack(linear_sum_assignment(np.tile(cost, (1, count))))
            for cost, count in zip(matrices, copies, strict=True)
        ]
    first = np.cumsum([0, *(shape[2] for shape in shapes)])
    columns = [
        np.stack(
            [
                np.full_like(query, number // layers),
                np.full_like(query, number % layers),
                query,
                truth % max(1, shapes[number // layers][2]) + first[number // layers],
            ]
        )
        for number, (query, truth) in enumerate(pairs)
    ]
    whole = torch.from_numpy(np.concatenate(columns, axis=1).astype(np.int64)).to(logits.device)
    return Matches(*whole.unbind())
