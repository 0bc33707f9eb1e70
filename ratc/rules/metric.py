"""R225: the best checkpoint is chosen, and a smaller model held, by a score that the task has."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from ratc.diagnostics import Diagnostic
from ratc.parts import kinds
from ratc.plan import Values
from ratc.tasks import metrics


def check(settings: Values) -> Iterator[Diagnostic]:
    """`checkpoint.best_metric` and `compression.metric` are `loss` or a score of `task_type`."""
    task = settings.get_as(str, "task_type")
    known = metrics(task, kinds(settings))
    # The second is there where the spec has such a section.
    for asked in (settings["checkpoint.best_metric"], settings.get("compression.metric")):
        if asked is None or asked.value is None or asked.value in known:
            continue
        message = f"{task} has no metric `{asked.value}`"
        near = get_close_matches(str(asked.value), known, 1)
        helps = (f"did you mean `{near[0]}`?",) if near else (f"use one of {', '.join(f'`{name}`' for name in known)}",)
        yield Diagnostic("R225", message, asked.span, helps=helps)
