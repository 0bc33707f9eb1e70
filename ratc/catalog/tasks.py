"""The tasks, one entry for each, as the runtime has them (`ratc_runtime.tasks.TASKS`; a test compares the two)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, slots=True)
class DataSet:
    """A built-in data set.

    Attributes:
        dimensions: 2 for images, grey or RGB, and 3 for volumes.
        layout: The names of the files and folders that it reads in a folder of data; empty if they are not fixed.
    """

    dimensions: int = 2
    layout: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of task.

    Attributes:
        scores: Its scores; the first chooses the best checkpoint if a spec names none.
        losses: Its built-in losses; the first is the default.
        datasets: Its built-in data sets, by name.
        part: Whether it may be one of several tasks of a run.
        counts: If its classes have no background, what they are of, and the number of what they are as many as.
    """

    scores: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    datasets: Mapping[str, DataSet] = field(default_factory=dict)
    part: bool = True
    counts: tuple[str, str] | None = None


_MASKS = ("images", "masks", "splits.json")

TASKS = {
    "segmentation": Task(
        scores=("dice", "iou", "hausdorff95", "hausdorff"),
        losses=("combined", "bce", "cross_entropy", "dice"),
        datasets={"isic": DataSet(layout=_MASKS), "volumes": DataSet(3, _MASKS)},
    ),
    "detection": Task(
        scores=("map", "map_50", "map_75"),
        losses=("set_prediction",),
        datasets={"coco": DataSet(layout=("annotations",))},
        counts=("objects", "`categories` in the annotations"),
    ),
    "classification": Task(
        scores=("accuracy", "macro_f1"),
        losses=("cross_entropy",),
        datasets={"folders": DataSet(layout=("train", "val")), "csv": DataSet()},
        counts=("images", "folders of classes, or of labels in the table"),
    ),
    "custom": Task(part=False),
    "multi": Task(part=False),  # its scores are those of its tasks, see `metrics`
}

if TYPE_CHECKING:
    TaskType = str
    PartType = str
else:
    TaskType = Literal[tuple(TASKS)]
    PartType = Literal[tuple(name for name, task in TASKS.items() if task.part)]

METRICS = {name: task.scores for name, task in TASKS.items()}
LOSSES = {name: task.losses for name, task in TASKS.items()}
DATASETS = {name: tuple(task.datasets) for name, task in TASKS.items()}
LAYOUTS = {name: one.layout for task in TASKS.values() for name, one in task.datasets.items() if one.layout}
DIMENSIONS = {name: one.dimensions for task in TASKS.values() for name, one in task.datasets.items()}
#: The tasks whose classes are counted in `data.num_classes` without a background.
WITHOUT_BACKGROUND = tuple(name for name, task in TASKS.items() if task.counts is not None)


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
