"""R226: a custom task has a model, data and a loss that are all the user's."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that a custom task uses nothing built in."""
    task = settings["task_type"]
    if task.value != "custom":
        return
    built_in = [
        path for path in ("model.name", "data.dataset", "training.loss") if ":" not in str(settings[path].value)
    ]
    if built_in:
        span = next((settings[path].span for path in built_in if settings[path].span), task.span)
        message = f"a custom task has no built-in {', '.join(f'`{path}`' for path in built_in)}"
        yield Diagnostic("R226", message, span, helps=("write your own and name it as `package.module:callable`",))
