"""What the runtime can learn, and the scores it has for it (`ratc_runtime.tasks.METRICS`; a test compares them)."""

from __future__ import annotations

#: The scores of each task; the first chooses the best checkpoint where a spec names none.
METRICS: dict[str, tuple[str, ...]] = {
    "segmentation": ("dice", "iou", "hausdorff95", "hausdorff"),
    "detection": ("map", "map_50", "map_75"),
    "custom": (),
}
#: The built-in losses of each task, the one that is taken where a spec names none first.
LOSSES: dict[str, tuple[str, ...]] = {
    "segmentation": ("combined", "bce", "cross_entropy", "dice"),
    "detection": ("set_prediction",),
    "custom": (),
}
#: The built-in data sets of each task.
DATASETS: dict[str, tuple[str, ...]] = {"segmentation": ("isic", "volumes"), "detection": ("coco",), "custom": ()}


def metrics(task_type: str) -> tuple[str, ...]:
    """The names that `checkpoint.best_metric` may have."""
    return (*METRICS.get(task_type, ()), "loss")


def default_loss(task_type: str) -> str | None:
    """The loss of a task where a spec names none; None where there is no built-in one."""
    return next(iter(LOSSES.get(task_type, ())), None)


def larger_is_better(metric: str) -> bool:
    """Which way a score goes; one of the user's is taken to be better when larger (`ratc_runtime.tasks.custom`)."""
    return metric != "loss" and not metric.startswith("hausdorff")
