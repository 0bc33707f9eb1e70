"""R228: variables that override the lock."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog import launch_variables
from ratc.diagnostics import Diagnostic
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that the environment section sets no variable that a launcher would prefer to the lock."""
    variables = settings["environment.variables"]
    for name in variables.value or {}:
        why = launch_variables.reason(name)
        if why is not None:
            instead = launch_variables.FOLDERS.get(name)
            help_text = "remove it, and set the key of `training` or `resources` instead"
            if instead:
                help_text = f"set `{instead}`"
            elif name in launch_variables.DEVICES:
                help_text = "remove it; without a scheduler, set it in the shell that starts the run"
            yield Diagnostic("R228", f"the variable `{name}` {why}", variables.span, helps=(help_text,))
