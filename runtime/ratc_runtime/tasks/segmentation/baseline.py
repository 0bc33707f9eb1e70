"""The trivial baseline of segmentation: the same prediction whatever the image.

Of one foreground class the mean training mask, cut where that is best; of K classes the most frequent one of each
pixel. Patches of volumes come from anywhere, so there it knows little more than which class is the most frequent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ratc_runtime import watchdog
from ratc_runtime.data.samples import checked
from ratc_runtime.distributed import World
from ratc_runtime.tasks.segmentation.metrics import baseline_mask, counts, mean_score


def evaluate(
    train: Any, test: Any, world: World, classes: int = 1, ignore_index: int | None = None
) -> dict[str, float]:
    """Score the prediction on the test split: `dice`, `iou`, and the `threshold` of the mean mask where there is one.

    Every rank calls this and reads its part of the masks. The threshold is the best on the training split.
    """
    total: torch.Tensor | None = None
    count = 0
    for target in _targets(train, world):
        part = target[0].double() if classes == 1 else _one_hot(target, classes)
        total = part if total is None else total + part
        count += 1
    shapes = [shape for shape in world.gather(None if total is None else tuple(total.shape)) if shape]
    total = world.sum(torch.zeros(shapes[0], dtype=torch.float64) if total is None else total)
    threshold = {}
    if classes == 1:
        number = float(world.sum(torch.tensor([float(count)], dtype=torch.float64)))
        mask, level = baseline_mask(total, number)
        prediction, threshold = mask.long(), {"threshold": level}
    else:
        prediction = total.argmax(0)
    totals = torch.zeros(max(1, classes - 1), 3, dtype=torch.float64)
    for target in _targets(test, world):
        true = (target[0] >= 0.5).long() if classes == 1 else target.long()
        totals += counts(prediction[None], true[None], max(2, classes), ignore_index)[0]
    found = mean_score(world.sum(totals))
    return {"dice": found.dice, "iou": found.iou, **threshold}


def _one_hot(target: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.stack([target == number for number in range(classes)]).double()


def _targets(dataset: Any, world: World) -> Iterator[torch.Tensor]:
    """Yield this rank's targets; bad samples were reported by the loaders and are left out here."""
    read = getattr(dataset, "target", None) or (lambda index: checked(dataset[index], "")["target"])
    for index in range(world.rank, len(dataset), world.size):
        watchdog.mark()
        try:
            yield read(index)
        except Exception:  # foreign data sets may raise anything
            continue
