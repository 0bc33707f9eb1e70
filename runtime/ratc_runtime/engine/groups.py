"""The groups of an optimizer: weights with and without decay, and those of `training.parameter_groups`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.config.sections import ParameterGroup
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.names import matching, named_parameters
from ratc_runtime.training.step import FACTOR


def make_groups(model: nn.Module, parameters: Sequence[nn.Parameter], lock: Lock) -> list[dict[str, Any]]:
    """Return groups for an optimizer of these parameters of a model. None of them is empty.

    Parameters of fewer than two dimensions, as biases and norms, have no weight decay. Each of the lock's groups gives
    one with its decay and one without, then come all other parameters. Raises R586 if a pattern matches no parameter.
    """
    training = lock.training
    numbers = group_numbers(model, training.parameter_groups)
    groups: list[dict[str, Any]] = []
    for number, own in enumerate((*training.parameter_groups, None)):
        chosen = [p for p in parameters if numbers.get(id(p), len(training.parameter_groups)) == number]
        factor = 1.0 if own is None else own.learning_rate_factor
        values = {"lr": training.learning_rate * factor, FACTOR: factor} if training.parameter_groups else {}
        decay = training.weight_decay if own is None else own.weight_decay
        groups += [
            {"params": [p for p in chosen if p.dim() >= 2], "weight_decay": decay, **values},
            {"params": [p for p in chosen if p.dim() < 2], "weight_decay": 0.0, **values},
        ]
    return [group for group in groups if group["params"]]


def group_numbers(model: nn.Module, groups: Iterable[ParameterGroup]) -> dict[int, int]:
    """Return the number of the first group that matches, by the `id` of each parameter that one matches.

    Raises R586 if a pattern matches no parameter, or if earlier groups leave none for a group.
    """
    named = named_parameters(model)
    numbers: dict[int, int] = {}
    for number, group in enumerate(groups):
        for pattern in group.match:
            for name in matching(named, pattern, "training.parameter_groups"):
                numbers.setdefault(id(named[name]), number)
        if number not in numbers.values():
            raise RuntimeFinding(
                "R586",
                f"training.parameter_groups: no parameter is left for the group of {', '.join(group.match)}",
                "a parameter belongs to the first group that matches it",
                "put the group with the narrower patterns first",
            )
    return numbers
