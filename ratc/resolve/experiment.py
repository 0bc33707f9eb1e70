"""Name, seed and output folder."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.resolve.context import Context


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive the output folder from the experiment's name, unless the spec gives it."""
    settings = context.settings
    context.keep("experiment_name", "description", "seed", "debug")
    name = settings.get_as(str, "experiment_name")
    if settings["output_dir"].value is None:
        folder = f"outputs/{name}-debug" if settings["debug"].value else f"outputs/{name}"
        context.derive("output_dir", folder, "`outputs/` and the name of the experiment", "spec:experiment_name")
    else:
        context.keep("output_dir")
    yield from ()
