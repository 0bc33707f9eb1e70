"""R225: the best checkpoint is chosen by a score that the task has."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from ratc.diagnostics import Diagnostic
from ratc.parts import kinds
from ratc.plan import Values
from ratc.tasks import metrics


def check(settings: Values) -> Iterator[Diagnostic]:
    """`checkpoint.best_metric` is `loss` or a score of `task_type`."""
    asked, task = settings["checkpoint.best_metric"], settings.get_as(str, "task_type")
    known = metrics(task, kinds(settings))
    if asked.value is None or asked.value in known:
        return
    message = f"{task} has no metric `{asked.value}`"
    near = get_close_matches(str(asked.value), known, 1)
    helps = (f"did you mean `{near[0]}`?",) if near else (f"use one of {', '.join(f'`{name}`' for name in known)}",)
    yield Diagnostic("R225", message, asked.span, helps=helps)
