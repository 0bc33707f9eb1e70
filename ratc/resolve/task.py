"""The task, its scores and its logging: mostly as the spec says."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog.tasks import metrics
from ratc.diagnostics import Diagnostic
from ratc.parts import kinds
from ratc.resolve.context import Context


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive trackers' names from the experiment's name and the best metric from the task, unless the spec has them."""
    settings = context.settings
    context.keep("task_type")
    name = settings.get_as(str, "experiment_name")
    tensorboard = settings["logging.backend"].value == "tensorboard"
    context.derive(
        "logging.tensorboard",
        tensorboard,
        f"backend is {settings['logging.backend'].value}",
        "spec:logging.backend",
    )
    context.keep("logging.use_mlflow", under="logging.mlflow")
    context.keep("logging.use_wandb", under="logging.wandb")
    context.keep("logging.wandb_mode")
    for path in ("logging.mlflow_experiment_name", "logging.wandb_project"):
        if settings[path].value is None:
            context.derive(path, name, "the experiment's name", "spec:experiment_name")
        else:
            context.keep(path)
    context.keep("evaluation.hausdorff")
    if settings["evaluation.scores"].value:
        context.keep_arguments("evaluation.scores")
    if settings["checkpoint.best_metric"].value is None:
        task, several = settings.get_as(str, "task_type"), kinds(settings)
        why = "the sum that is trained on" if several else f"the first score of {task}"
        context.derive("checkpoint.best_metric", metrics(task, several)[0], why, "spec:task_type")
    else:
        context.keep("checkpoint.best_metric")
    if settings["task_type"].value == "detection":
        context.keep("detection.queries", "detection.decoder_layers")
    yield from ()
