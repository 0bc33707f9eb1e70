"""Scores of the user's: functions of one sample, of which the mean over a split is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ratc_runtime.data import pytree
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.import_callable import build

#: Returns a number for outputs and targets of one sample, as batches of one; larger is better.
Score = Callable[[Any, Any], float]


def build_scores(named: Mapping[str, str]) -> dict[str, Score]:
    """Return the scores that a lock names. Raises R509 if one cannot be built or called."""
    made = {name: build("score", callable_name, {}) for name, callable_name in named.items()}
    for name, score in made.items():
        if not callable(score):
            raise RuntimeFinding("R509", f"score {named[name]} returned {type(score).__name__}, which cannot be called")
    return made


class Mean:
    """The mean of scores over the samples of a split."""

    def __init__(self, scores: Mapping[str, Score]) -> None:
        self._functions = scores
        self._totals = torch.zeros(len(scores) + 1, dtype=torch.float64)

    def add(self, output: Any, target: Any) -> None:
        """Score each sample separately, so that padding and batch sizes do not matter. Raises R509 for a score that is
        not a number.
        """
        count = next(len(tensor) for tensor in pytree.tensors(output))
        for row in range(count):
            one = pytree.select(output, [row]), pytree.select(target, [row])
            values = [_number(name, function(*one)) for name, function in self._functions.items()]
            self._totals += torch.tensor([*values, 1.0], dtype=torch.float64)

    def scores(self, world: World) -> dict[str, float]:
        """Return the means over all ranks."""
        *sums, count = world.sum(self._totals).tolist()
        return {name: total / max(1.0, count) for name, total in zip(self._functions, sums, strict=True)}


def _number(name: str, score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: of a tensor of several values
        kind = f"a tensor of shape {list(score.shape)}" if isinstance(score, torch.Tensor) else type(score).__name__
        raise RuntimeFinding("R509", f"score {name} returned {kind} for a sample, not a number") from None
