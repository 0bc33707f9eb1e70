"""R228: variables that override the lock. R229: values that torch refuses."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog import launch_variables
from ratc.diagnostics import Diagnostic
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that the environment section sets no variable that overrides the lock, or that torch refuses."""
    variables = settings["environment.variables"]
    for name, value in (variables.value or {}).items():
        if wrong := launch_variables.fault(name, str(value)):
            yield Diagnostic("R229", f"the variable `{name}` {wrong}: no run could import torch", variables.span)
        why = launch_variables.reason(name)
        if why is not None:
            instead = launch_variables.FOLDERS.get(name)
            help_text = "remove it, and set the key of `training` or `resources` for it instead"
            if instead:
                help_text = f"set `{instead}`"
            elif name in launch_variables.DEVICES:
                help_text = "remove it; without a scheduler, set it in the shell that starts the run"
            yield Diagnostic("R228", f"the variable `{name}` {why}", variables.span, helps=(help_text,))
