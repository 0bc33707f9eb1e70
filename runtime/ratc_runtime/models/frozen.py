"""Parameters that are not trained, by patterns of their names (`training.frozen`)."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from ratc_runtime.errors import RuntimeFinding

#: Names of parameters in a message.
_SHOWN = 8


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let no gradient be computed for the parameters whose names match a pattern (`*`, `?`, `[…]`).

    Raises R586 if a pattern matches none, and R585 if no parameter is left to train.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            names = list(named)
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise RuntimeFinding(
                "R586",
                f"training.frozen: no parameter of the model matches {pattern!r}",
                f"they are called {', '.join(names[:_SHOWN])}{more}",
                "a pattern matches a whole name: 'encoder.*' is for all parameters of the module `encoder`",
            )
        for name in matched:
            named[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise RuntimeFinding(
            "R585", "no parameter of the model is trained", "training.frozen matches all", "freeze fewer"
        )
