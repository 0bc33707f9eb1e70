"""Evaluation of whole splits: the loss and the task's scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ratc_runtime.data import pytree
from ratc_runtime.data.folders import first_of
from ratc_runtime.data.joint import JointLoader
from ratc_runtime.data.loading import Loader
from ratc_runtime.distributed.phases import phase
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import warn
from ratc_runtime.output.sizes import counted
from ratc_runtime.tasks.base import Task
from ratc_runtime.tasks.own_scores import Mean


@dataclass(frozen=True)
class Evaluation:
    """Loss and scores of one split; `pictures` of the whole split first, then of samples in its order, on every rank.

    With several tasks the loss is the weighted sum, each score is named `task/score`, and each picture comes with its
    task's name.

    `not_numbers` names the samples whose outputs hold NaN, on every rank. If there are any, loss and scores are NaN:
    comparisons with NaN are false, so a score would take such an output for a prediction of nothing.
    """

    loss: float
    scores: dict[str, float]
    samples: int
    pictures: list[Any] = field(default_factory=list)
    not_numbers: list[str] = field(default_factory=list)

    def remarks(self, task: Task) -> list[str]:
        """Return the task's additional lines about the scores; none if outputs hold NaN."""
        return [] if self.not_numbers else task.remarks(self.scores)


def chosen(length: int, count: int) -> frozenset[int]:
    """Return `count` positions spread over a split of `length` samples, fewer if it has fewer."""
    return frozenset((2 * number + 1) * length // (2 * count) for number in range(count))


@torch.no_grad()
@phase("evaluation")
def evaluate(engine: Any, loader: Loader | JointLoader, criterion: Any, task: Task, pictures: int = 0) -> Evaluation:
    """Score the model on a whole split. Every rank calls this.

    The loss is the mean over samples, with several tasks their weighted sum. `pictures` is the number of samples per
    task to make a picture of.
    """
    engine.evaluate()
    if not isinstance(loader, JointLoader):
        return _score(engine.predict, engine.world, loader, criterion, task, pictures)
    found: dict[str, Evaluation] = {}
    for name, part in task.parts.items():
        predict = partial(_predict_part, engine, name)
        found[name] = _score(predict, engine.world, loader.parts[name], criterion.parts[name], part, pictures)
    scores = {f"{name}/{score}": value for name, one in found.items() for score, value in one.scores.items()}
    return Evaluation(
        sum(criterion.weights[name] * one.loss for name, one in found.items()),
        {**scores, **{f"{name}/loss": one.loss for name, one in found.items()}},
        sum(one.samples for one in found.values()),
        [(name, picture) for name, one in found.items() for picture in one.pictures],
        [f"{name} {sample}" for name, one in found.items() for sample in one.not_numbers],
    )


def _predict_part(engine: Any, name: str, image: Any) -> Any:
    return engine.predict({name: image})[name]


def _score(
    predict: Callable[[Any], Any],
    world: World,
    loader: Loader,
    criterion: Callable[[Any, Any], torch.Tensor],
    task: Task,
    count: int,
) -> Evaluation:
    scorer, own = task.scorer(), Mean(task.own_scores)
    pictures = chosen(len(loader), count) if count else frozenset()
    totals = torch.zeros(2, dtype=torch.float64)  # loss, samples
    kept: list[tuple[int, Any]] = []
    not_numbers: list[str] = []
    for batch in loader:
        image = pytree.to_device(batch.image, world.device)
        # Every rank makes as many calls, padding included: under ZeRO-3 they meet in each.
        with phase("forward"):
            output = predict(image)
        rows = torch.nonzero(batch.weight > 0).flatten().tolist()
        if not rows:
            continue
        output = pytree.select(output, rows)
        target = pytree.select(pytree.to_device(batch.target, world.device), rows)
        if pytree.hold_nan(output):
            bad = [row for number, row in enumerate(rows) if pytree.hold_nan(pytree.select(output, [number]))]
            not_numbers += [batch.names[row] for row in bad]
        scorer.add(output, target)
        own.add(output, target)
        totals += torch.tensor([float(criterion(output, target)) * len(rows), len(rows)], dtype=torch.float64)
        for number, row in enumerate(rows):
            position = int(batch.position[row])
            if position in pictures:
                one = pytree.select(target, [number]), pytree.select(output, [number])
                image = pytree.select(batch.image, [row])
                # Of the levels of a pyramid take the finest. A task with mappings reads them itself.
                finest = image[0] if isinstance(image, (list, tuple)) else image
                bare = finest[0] if isinstance(finest, torch.Tensor) else finest
                kept.append((position, task.picture(position, batch.names[row], bare, *one)))
    totals = world.sum(totals)
    gathered = [found for part in world.gather(kept) for found in part] if pictures else []
    loss, samples = totals.tolist()
    drawn = task.overview(scorer, world) if count else []
    drawn += [picture for _, picture in sorted(gathered, key=lambda found: found[0])]
    scores = {**scorer.scores(world), **own.scores(world)}
    not_numbers = [name for part in world.gather(not_numbers) for name in part]
    if not_numbers:
        loss, scores = math.nan, dict.fromkeys(scores, math.nan)
        if world.main:
            many = f"{counted(len(not_numbers), 'sample')} of {samples:.0f}"
            warn(f"the model's outputs for {many} hold NaN, so there are no scores: {first_of(not_numbers)}")
    return Evaluation(loss / max(1.0, samples), scores, int(samples), drawn, not_numbers)
