"""Parameters that are not trained, by patterns of their names (`training.frozen`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.names import matching, named_parameters


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let no gradient be computed for the parameters whose names match a pattern (`*`, `?`, `[…]`).

    Raises R586 if a pattern matches none, and R585 if no parameter is left to train.
    """
    named = named_parameters(model)
    for pattern in patterns:
        for name in matching(named, pattern, "training.frozen"):
            named[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise RuntimeFinding(
            "R585", "no parameter of the model is trained", "training.frozen matches all", "freeze fewer"
        )
