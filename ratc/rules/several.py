"""R340 and R341: `tasks` go with `task_type: multi`, and a key of each task is not also given above them."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.parts import OWN
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that a spec has one task, or several that each have their own keys."""
    task, tasks = settings["task_type"], settings["tasks"]
    if task.value != "multi":
        if tasks.value is not None:
            message = f"`tasks` needs `task_type: multi`, and `task_type` is {task.value}"
            helps = ("set `task_type: multi`, or remove `tasks`",)
            yield Diagnostic("R340", message, tasks.span, helps=helps)
        return
    if tasks.value is None:
        helps = ("add two or more: `tasks: {NAME: {task_type: segmentation}, …}`",)
        yield Diagnostic("R340", "`task_type: multi` needs `tasks`", task.span, helps=helps)
        return
    for key, path in OWN.items():
        if key != "task_type" and settings.given(path) and settings[path].value is not None:
            message = f"`{path}` is for a spec with one task, and this spec has several"
            helps = (
                f"give it for each task: `tasks: {{NAME: {{{key.replace('.', ': {', 1)}: …}}{'}' * key.count('.')}}}`",
            )
            yield Diagnostic("R341", message, settings[path].span, helps=helps)
