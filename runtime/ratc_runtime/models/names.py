"""Parameters of a model by patterns of their names."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from ratc_runtime.errors import RuntimeFinding

#: Names of parameters in a message.
_SHOWN = 8


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by name; one that several modules share has several names."""
    return dict(model.named_parameters(remove_duplicate=False))


def matching(named: Mapping[str, nn.Parameter], pattern: str, key: str) -> list[str]:
    """Return the names that a pattern (`*`, `?`, `[…]`) of the lock's `key` matches. Raises R586 if it matches none."""
    matched = [name for name in named if fnmatchcase(name, pattern)]
    if not matched:
        names = list(named)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise RuntimeFinding(
            "R586",
            f"{key}: no parameter of the model matches {pattern!r}",
            f"they are called {', '.join(names[:_SHOWN])}{more}",
            "a pattern matches a whole name: 'encoder.*' is for all parameters of the module `encoder`",
        )
    return matched
