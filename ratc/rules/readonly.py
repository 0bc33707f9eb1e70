"""R208: variables that bash keeps for itself; a script that exports one stops there.

The names are those that `readonly -p` lists in a fresh bash.
"""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import Values

_READONLY = frozenset(("BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"))


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that no variable of the environment section has such a name."""
    variables = settings["environment.variables"]
    for name in variables.value or {}:
        if name in _READONLY:
            message = f"`{name}` is read-only in bash and cannot be set"
            yield Diagnostic("R208", message, variables.span, helps=("give it another name",))
