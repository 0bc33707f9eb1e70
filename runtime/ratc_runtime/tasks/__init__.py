"""Tasks. A task is a folder here with a subclass of `base.Task`, and a line in each table below.

Does not import torch: the lock is checked against the tables before torch is imported.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ratc_runtime.config.lock import Lock
    from ratc_runtime.tasks.base import Task


@dataclass(frozen=True)
class Metric:
    """The label of a score, and its direction. A score is a float; None or NaN if it is undefined."""

    label: str
    larger_is_better: bool = True


#: The scores of each task, by name; the first chooses the best checkpoint if a spec names none.
METRICS: dict[str, dict[str, Metric]] = {
    "segmentation": {
        "dice": Metric("Dice"),
        "iou": Metric("IoU"),
        "hausdorff95": Metric("Hausdorff 95 %", larger_is_better=False),
        "hausdorff": Metric("Hausdorff", larger_is_better=False),
    },
    "detection": {"map": Metric("mAP"), "map_50": Metric("mAP 50"), "map_75": Metric("mAP 75")},
    "classification": {"accuracy": Metric("accuracy"), "macro_f1": Metric("macro F1")},
    "custom": {},
    "multi": {},  # those of each of its tasks, see `metrics`
}
#: The tasks that can be combined in a run.
PARTS = ("segmentation", "detection", "classification")
#: Scores that are made only if a spec asks for them: `evaluation.hausdorff`.
DISTANCES = ("hausdorff95", "hausdorff")
LOSS = Metric("loss", larger_is_better=False)
_CLASSES = {
    "segmentation": "ratc_runtime.tasks.segmentation.task:Segmentation",
    "detection": "ratc_runtime.tasks.detection.task:Detection",
    "classification": "ratc_runtime.tasks.classification.task:Classification",
    "custom": "ratc_runtime.tasks.custom:Custom",
    "multi": "ratc_runtime.tasks.multi:Multi",
}


def metrics(lock: Lock) -> dict[str, Metric]:
    """Return the scores of the task of a lock, by name."""
    if lock.tasks:
        return {
            f"{name}/{score}": Metric(f"{name} {metric.label}", metric.larger_is_better)
            for name in lock.tasks
            for score, metric in metrics(lock.part(name)).items()
        }
    known = METRICS[lock.task_type].items()
    made = {name: metric for name, metric in known if lock.evaluation.hausdorff or name not in DISTANCES}
    return made | {name: Metric(name) for name in lock.evaluation.scores}


def make_task(lock: Lock) -> Task:
    """Return the task that a lock names."""
    module, _, name = _CLASSES[lock.task_type].partition(":")
    made: Task = getattr(importlib.import_module(module), name)(lock)
    return made
