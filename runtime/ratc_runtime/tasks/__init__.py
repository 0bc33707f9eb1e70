"""Tasks. A task is a folder here with a subclass of `base.Task`, and an entry of `TASKS`.

Does not import torch: the lock is checked against these before torch is imported.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ratc_runtime.config.lock import Lock
    from ratc_runtime.tasks.base import Task


@dataclass(frozen=True)
class Metric:
    """The label of a score, and its direction. A score is a float; None or NaN if it is undefined."""

    label: str
    larger_is_better: bool = True


@dataclass(frozen=True)
class Kind:
    """A kind of task: its class, its scores by name, of which the first chooses the best checkpoint if a spec names
    none, and whether it may be one of several tasks of a run.
    """

    made: str
    metrics: dict[str, Metric] = field(default_factory=dict)
    part: bool = True


TASKS = {
    "segmentation": Kind(
        "ratc_runtime.tasks.segmentation.task:Segmentation",
        {
            "dice": Metric("Dice"),
            "iou": Metric("IoU"),
            "hausdorff95": Metric("Hausdorff 95 %", larger_is_better=False),
            "hausdorff": Metric("Hausdorff", larger_is_better=False),
        },
    ),
    "detection": Kind(
        "ratc_runtime.tasks.detection.task:Detection",
        {"map": Metric("mAP"), "map_50": Metric("mAP 50"), "map_75": Metric("mAP 75")},
    ),
    "classification": Kind(
        "ratc_runtime.tasks.classification.task:Classification",
        {"accuracy": Metric("accuracy"), "macro_f1": Metric("macro F1")},
    ),
    "custom": Kind("ratc_runtime.tasks.custom:Custom", part=False),
    "multi": Kind("ratc_runtime.tasks.multi:Multi", part=False),  # its scores are those of its tasks, see `metrics`
}

if TYPE_CHECKING:
    TaskType = str
    PartType = str
else:
    TaskType = Literal[tuple(TASKS)]
    PartType = Literal[tuple(name for name, kind in TASKS.items() if kind.part)]

METRICS = {name: kind.metrics for name, kind in TASKS.items()}
#: Scores that are made only if a spec asks for them: `evaluation.hausdorff`.
DISTANCES = ("hausdorff95", "hausdorff")
LOSS = Metric("loss", larger_is_better=False)


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
    module, _, name = TASKS[lock.task_type].made.partition(":")
    made: Task = getattr(importlib.import_module(module), name)(lock)
    return made
