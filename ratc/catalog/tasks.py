"""The runtime's tasks and the scores of each (`ratc_runtime.tasks.METRICS`; a test compares them)."""

from __future__ import annotations

from collections.abc import Mapping

#: The scores of each task; the first chooses the best checkpoint if a spec names none.
METRICS: dict[str, tuple[str, ...]] = {
    "segmentation": ("dice", "iou", "hausdorff95", "hausdorff"),
    "detection": ("map", "map_50", "map_75"),
    "classification": ("accuracy", "macro_f1"),
    "custom": (),
    "multi": (),  # those of its tasks, see `metrics`
}
#: The built-in losses of each task, the one that is taken if a spec names none first.
LOSSES: dict[str, tuple[str, ...]] = {
    "segmentation": ("combined", "bce", "cross_entropy", "dice"),
    "detection": ("set_prediction",),
    "classification": ("cross_entropy",),
    "custom": (),
    "multi": (),
}
#: The built-in data sets of each task.
DATASETS: dict[str, tuple[str, ...]] = {
    "segmentation": ("isic", "volumes"),
    "detection": ("coco",),
    "classification": ("folders", "csv"),
    "custom": (),
    "multi": (),
}
#: What the built-in data sets read in a folder of data.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "isic": ("images", "masks", "splits.json"),
    "volumes": ("images", "masks", "splits.json"),
    "coco": ("annotations",),
    "folders": ("train", "val"),
}
#: Dimensions of what the built-in data sets hold: 2 are images, grey or RGB, and 3 volumes.
DIMENSIONS = {"isic": 2, "volumes": 3, "coco": 2, "folders": 2, "csv": 2}
#: The tasks whose classes are counted in `data.num_classes` without a background.
WITHOUT_BACKGROUND = ("detection", "classification")


def metrics(task_type: str, parts: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the valid values of `checkpoint.best_metric`, its default first.

    ``parts`` are the kinds of several tasks by name: their scores are called `name/score`, and the loss is their sum.
    """
    if parts:
        return ("loss", *(f"{name}/{score}" for name, kind in parts.items() for score in METRICS.get(kind, ())))
    return (*METRICS.get(task_type, ()), "loss")


def default_loss(task_type: str) -> str | None:
    """The loss of a task if a spec names none; None if there is no built-in one."""
    return next(iter(LOSSES.get(task_type, ())), None)


def larger_is_better(metric: str) -> bool:
    """Whether larger is better for a score; true for a score of the user's (`ratc_runtime.tasks.custom`)."""
    return metric != "loss" and not metric.rpartition("/")[2].startswith("hausdorff")


def class_names(task: str, classes: int) -> list[str]:
    """Return default names of classes, used if the spec has none."""
    first = "class 0" if task in WITHOUT_BACKGROUND else ("foreground" if classes == 1 else "background")
    return [first, *(f"class {n}" for n in range(1, classes))]
