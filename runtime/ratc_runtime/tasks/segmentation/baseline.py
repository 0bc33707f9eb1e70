"""The trivial baseline of segmentation: the mean training mask, whatever the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ratc_runtime import watchdog
from ratc_runtime.data.samples import checked
from ratc_runtime.distributed import World
from ratc_runtime.tasks.segmentation.metrics import Score, baseline_mask, counts, score


def evaluate(train: Any, test: Any, world: World) -> tuple[Score, float]:
    """Score the mean training mask on the test split; return the score and the mask's threshold.

    Every rank calls this and reads its part of the masks. The threshold is the best on the training split.
    """
    total: torch.Tensor | None = None
    count = 0
    for target in _targets(train, world):
        total = target.double() if total is None else total + target.double()
        count += 1
    shapes = [shape for shape in world.gather(None if total is None else tuple(total.shape)) if shape]
    total = torch.zeros(shapes[0], dtype=torch.float64) if total is None else total
    number = float(world.sum(torch.tensor([float(count)], dtype=torch.float64)))
    mask, threshold = baseline_mask(world.sum(total), number)
    logits = mask[None].double() - 0.5
    totals = torch.zeros(3, dtype=torch.float64)
    for target in _targets(test, world):
        totals += counts(logits, target[None])[0]
    return score(world.sum(totals)), threshold


def _targets(dataset: Any, world: World) -> Iterator[torch.Tensor]:
    """Yield this rank's targets (1, H, W); bad samples were reported by the loaders and are left out here."""
    read = getattr(dataset, "target", None) or (lambda index: checked(dataset[index], "")["target"])
    for index in range(world.rank, len(dataset), world.size):
        watchdog.mark()
        try:
            yield read(index)
        except Exception:  # foreign data sets may raise anything
            continue
