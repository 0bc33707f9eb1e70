"""Several tasks in one spec (`task_type: multi`): each as the settings of a spec with that task alone."""

from __future__ import annotations

from dataclasses import replace

from ratc.catalog.tasks import DATASETS
from ratc.memory.images import dims
from ratc.plan import Value, Values

#: The own keys of one of several tasks, each with its key in a spec of that task alone.
OWN = {
    "task_type": "task_type",
    "loss": "training.loss",
    "loss_args": "training.loss_args",
    "data.dataset": "data.dataset",
    "data.args": "data.args",
    "data.num_classes": "data.num_classes",
    "data.class_names": "data.class_names",
    "data.ignore_index": "data.ignore_index",
    "detection.queries": "detection.queries",
    "detection.decoder_layers": "detection.decoder_layers",
}


def kinds(settings: Values) -> dict[str, str]:
    """The kind of each task by its name; empty if there is one task."""
    names = settings["tasks"].value or {}
    return {name: settings.get_as(str, f"tasks.{name}.task_type") for name in names}


def parts(settings: Values) -> dict[str, Values]:
    """Return the settings of each task by its name, with their places in the source; empty if there is one task."""
    if not settings["tasks"].value:
        return {}
    shared = {path: value for path, value in settings.items() if path != "tasks" and not path.startswith("tasks.")}
    return {name: _part(settings, name, kind, shared) for name, kind in kinds(settings).items()}


def _part(settings: Values, name: str, kind: str, shared: dict[str, Value]) -> Values:
    own = {path: settings[f"tasks.{name}.{key}"] for key, path in OWN.items()}
    if own["data.dataset"].value is None:
        usual = "volumes" if kind == "segmentation" and dims(settings) == 3 else DATASETS[kind][0]
        own["data.dataset"] = replace(own["data.dataset"], value=usual)
    # The metric of the best checkpoint, and whether distances are computed, are set once for all tasks.
    own["checkpoint.best_metric"] = Value(None, "default")
    if kind != "segmentation":
        own["evaluation.hausdorff"] = Value(False, "default")
    return Values({**shared, **own})
