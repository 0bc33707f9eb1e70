"""The trivial baseline of segmentation: the mean training mask of each class, for every image.

Each mask is cut at the training split's best threshold, and scored separately. With several classes they may overlap,
unlike a model's prediction, so this is an upper bound for a fixed prediction. Patches of volumes come from anywhere, so
their baseline reflects little more than the size of a class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ratc_runtime.data.samples import checked
from ratc_runtime.distributed import watchdog
from ratc_runtime.distributed.phases import phase
from ratc_runtime.distributed.world import World
from ratc_runtime.tasks.segmentation.metrics import baseline_mask, mean_score


def evaluate(
    train: Any, test: Any, world: World, classes: int = 1, ignore_index: int | None = None
) -> dict[str, float]:
    """Score the masks on the test split: `dice`, `iou`, and with one foreground class its `threshold`.

    Every rank calls this and reads its part of the masks. The thresholds are the best on the training split.
    """
    total: torch.Tensor | None = None
    count = 0
    for target in _targets(train, world):
        part = _split(target, classes).double()
        total = part if total is None else total + part
        count += 1
    shapes = [shape for shape in world.gather(None if total is None else tuple(total.shape)) if shape]
    total = world.sum(torch.zeros(shapes[0], dtype=torch.float64) if total is None else total)
    number = float(world.sum(torch.tensor([float(count)], dtype=torch.float64)))
    masks, thresholds = zip(*(baseline_mask(mask, number) for mask in total), strict=True)
    found = torch.stack(masks)
    totals = torch.zeros(len(masks), 3, dtype=torch.float64)
    for target in _targets(test, world):
        true, counted = _split(target, classes), torch.ones_like(target, dtype=torch.bool)
        if classes > 1 and ignore_index is not None:
            counted = target != ignore_index
        pairs = (found & true, found & ~true, ~found & true)
        totals += torch.stack([(pair & counted).flatten(1).sum(1) for pair in pairs], dim=1)
    scored = mean_score(world.sum(totals))
    threshold = {"threshold": thresholds[0]} if classes == 1 else {}
    return {"dice": scored.dice, "iou": scored.iou, **threshold}


def _split(target: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the mask of each foreground class: (classes, ...), bool."""
    if classes == 1:
        return target >= 0.5
    return torch.stack([target == number for number in range(1, classes)])


def _targets(dataset: Any, world: World) -> Iterator[torch.Tensor]:
    """Yield this rank's targets. Bad samples are skipped: the loaders have reported them."""
    read = getattr(dataset, "target", None) or (lambda index: checked(dataset[index], "")["target"])
    for index in range(world.rank, len(dataset), world.size):
        watchdog.mark()
        try:
            with phase("loader"):
                target = read(index)
        except Exception:  # a data set of the user's may raise anything
            continue
        yield target
