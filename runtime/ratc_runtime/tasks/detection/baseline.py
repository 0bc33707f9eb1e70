"""The trivial baseline of detection: the mean box of each class of the training split, for every image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ratc_runtime.distributed.phases import phase
from ratc_runtime.distributed.world import World
from ratc_runtime.tasks.detection.boxes import to_corners
from ratc_runtime.tasks.detection.metrics import AveragePrecision


def evaluate(
    train: Any, test: Any, world: World, collate: Callable[[Any], Any], scorer: AveragePrecision
) -> dict[str, float]:
    """Score one box per class, its mean, with the class's share of the objects as score. Every rank calls this."""
    classes = len(scorer.class_names)
    totals = torch.zeros(classes, 5, dtype=torch.float64)  # number, and sums of centre and size
    for target in _targets(train, world, collate):
        ones = torch.ones(len(target["labels"]), 1, dtype=torch.float64)
        totals.index_add_(0, target["labels"], torch.cat([ones, target["boxes"].double()], dim=1))
    totals = world.sum(totals)
    number = totals[:, :1]
    mean = to_corners(totals[:, 1:] / number.clamp(min=1))
    labels = torch.arange(classes, dtype=torch.float64)[:, None]
    found = torch.cat([mean, number / number.sum().clamp(min=1), labels], dim=1)[number[:, 0] > 0]
    for target in _targets(test, world, collate):
        scorer.add_detections(found.numpy(), target)
    scores = scorer.scores(world)
    return {name: scores[name] for name in ("map", "map_50", "map_75")}


def _targets(dataset: Any, world: World, collate: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield this rank's collated targets. Bad samples are skipped: the loaders have reported them."""
    read = getattr(dataset, "target", None) or (lambda index: dataset[index]["target"])
    for index in range(world.rank, len(dataset), world.size):
        try:
            with phase("loader"):
                target = collate([read(index)])[0]
        except Exception:  # a data set of the user's may raise anything
            continue
        yield target
