"""What the runtime can learn, and the scores it has for it (`ratc_runtime.tasks.METRICS`; a test compares them)."""

from __future__ import annotations

#: The scores of each task; the first chooses the best checkpoint where a spec names none.
METRICS: dict[str, tuple[str, ...]] = {"segmentation": ("dice", "iou", "hausdorff95", "hausdorff"), "custom": ()}


def metrics(task_type: str) -> tuple[str, ...]:
    """The names that `checkpoint.best_metric` may have."""
    return (*METRICS.get(task_type, ()), "loss")
