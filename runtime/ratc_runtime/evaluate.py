"""Scores over whole splits: loss, Dice and IoU of the model, and of the trivial baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ratc_runtime.data.loading import Batch, Loader
from ratc_runtime.distributed import World
from ratc_runtime.tasks.metrics import Score, baseline_mask, counts, score


@dataclass(frozen=True)
class Picture:
    """One sample for an overlay: image (C, H, W) in [0, 1], truth and prediction (H, W) bool."""

    index: int
    name: str
    image: torch.Tensor
    truth: torch.Tensor
    prediction: torch.Tensor
    dice: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split; `pictures` in order of the split, on every rank."""

    loss: float
    score: Score
    samples: int
    pictures: list[Picture] = field(default_factory=list)


def to_device(batch: Batch, device: torch.device) -> tuple[Any, torch.Tensor]:
    """Return image (or list of images) and target of a batch on the device."""
    image = batch.image
    if isinstance(image, (list, tuple)):
        moved: Any = [level.to(device, non_blocking=True) for level in image]
    else:
        moved = image.to(device, non_blocking=True)
    return moved, batch.target.to(device, non_blocking=True)


@torch.no_grad()
def evaluate(
    engine: Any, loader: Loader, criterion: Callable[..., torch.Tensor], pictures: frozenset[int] = frozenset()
) -> Evaluation:
    """Score the model on a whole split; every rank calls this.

    The loss is the mean over samples. `pictures` are the positions of which an overlay is wanted.
    """
    world: World = engine.world
    totals = torch.zeros(5, dtype=torch.float64)  # true +, false +, false -, loss, samples
    kept: list[Picture] = []
    for batch in loader:
        image, target = to_device(batch, world.device)
        logits = engine.predict(image)
        valid = batch.weight.to(world.device) > 0
        number = int(valid.sum())
        if number == 0:
            continue
        per_sample = counts(logits[valid], target[valid]).cpu()
        totals[:3] += per_sample.sum(0)
        totals[3] += float(criterion(logits[valid], target[valid])) * number
        totals[4] += number
        rows = torch.nonzero(valid.cpu()).flatten().tolist()
        for row, sample in zip(rows, per_sample, strict=True):
            if int(batch.position[row]) in pictures:
                kept.append(_picture(batch, row, logits, score(sample)))
    totals = world.sum(totals)
    gathered = [picture for part in world.gather(kept) for picture in part] if pictures else []
    samples = int(totals[4])
    pictures_in_order = sorted(gathered, key=lambda picture: picture.index)
    return Evaluation(float(totals[3]) / max(1, samples), score(totals[:3]), samples, pictures_in_order)


def _picture(batch: Batch, row: int, logits: torch.Tensor, result: Score) -> Picture:
    image = batch.image[0][row] if isinstance(batch.image, (list, tuple)) else batch.image[row]
    return Picture(
        int(batch.position[row]),
        batch.names[row],
        image.cpu(),
        (batch.target[row, 0] >= 0.5).cpu(),
        (logits[row, 0] > 0).cpu(),
        result.dice,
    )


def evaluate_baseline(train: Any, test: Any, world: World) -> tuple[Score, float]:
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
    read = getattr(dataset, "target", None) or (lambda index: dataset[index]["target"])
    for index in range(world.rank, len(dataset), world.size):
        try:
            yield read(index)
        except Exception:  # foreign data sets may raise anything
            continue
