"""R225: the best checkpoint, the end of training and a compressed model depend on a score that the task has."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog.tasks import metrics
from ratc.diagnostics import Diagnostic, did_you_mean
from ratc.parts import kinds
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that every key that names a metric names `loss` or a score of `task_type`."""
    task = settings.get_as(str, "task_type")
    known: tuple[str, ...] = metrics(task, kinds(settings))
    own = settings["evaluation.scores"]
    if twice := [name for name in own.value or {} if name in known]:
        message = f"`{twice[0]}` is a score of {task} already"
        yield Diagnostic("R225", message, own.span, helps=("give your score another name",))
    if own.value and task == "multi":
        message = "scores of your own do not work with several tasks"
        yield Diagnostic("R225", message, own.span, helps=("write one spec for each task",))
    known = (*known, *(own.value or {}))
    # The others are there if the spec has such sections.
    others = (settings.get(path) for path in ("training.early_stopping.metric", "compression.metric"))
    for asked in (settings["checkpoint.best_metric"], *others):
        if asked is None or asked.value is None or asked.value in known:
            continue
        message = f"{task} has no metric `{asked.value}`"
        listed = ", ".join(f"`{name}`" for name in known)
        helps = did_you_mean(str(asked.value), known) or (f"use one of {listed}",)
        yield Diagnostic("R225", message, asked.span, helps=helps)
