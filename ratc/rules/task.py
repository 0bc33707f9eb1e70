"""R215 to R218: loss and data set fit the task, it has a number of classes, and no key is of another task."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog.tasks import DATASETS, LOSSES, TASKS, WITHOUT_BACKGROUND
from ratc.diagnostics import Diagnostic
from ratc.memory.images import dims
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that keys of one task are not given to another. A custom task has nothing built in (R226)."""
    task = settings.get_as(str, "task_type")
    if task != "custom":
        yield from _of_task(settings, task, "training.loss", "loss", LOSSES, "R215")
        yield from _of_task(settings, task, "data.dataset", "data set", DATASETS, "R216")
    if task in WITHOUT_BACKGROUND:
        yield from _number(settings, task)
        yield from _of_segmentation(settings, task)
    if task == "detection":
        if dims(settings) != 2:
            span = settings["model.spatial_dims"].span or settings["data.image_size"].span
            message = "detection needs 2D images, and `model.spatial_dims` is 3"
            yield Diagnostic("R218", message, span, helps=("set `spatial_dims: 2`",))
        return
    for path in ("detection.queries", "detection.decoder_layers"):
        if settings.given(path):
            message = f"`{path}` needs `task_type: detection`, and `task_type` is {task}"
            yield Diagnostic("R218", message, settings[path].span, helps=("remove it, or set `task_type`",))


def _number(settings: Values, task: str) -> Iterator[Diagnostic]:
    """Check that the number of classes is given, and that classification has two or more."""
    number = settings["data.num_classes"]
    if not settings.given("data.num_classes"):
        of, counted = TASKS[task].counts or ("", "")
        message = f"{task} needs `data.num_classes`, the number of classes of {of}"
        yield Diagnostic("R217", message, settings["task_type"].span, helps=(f"set it to the number of {counted}",))
    elif task == "classification" and number.value < 2:
        message = f"classification needs `data.num_classes` of 2 or more, and it is {number.value}"
        helps = ("for two classes, set 2: each image has one of them",)
        yield Diagnostic("R217", message, number.span, helps=helps)


def _of_segmentation(settings: Values, task: str) -> Iterator[Diagnostic]:
    """Check that other tasks have no keys for ignored pixels or surface distances."""
    for path in ("data.ignore_index", "evaluation.hausdorff"):
        if settings[path].value:
            message = f"`{path}` needs `task_type: segmentation`, and `task_type` is {task}"
            yield Diagnostic("R218", message, settings[path].span, helps=("remove it, or set `task_type`",))


def _of_task(
    settings: Values, task: str, path: str, what: str, known: dict[str, tuple[str, ...]], code: str
) -> Iterator[Diagnostic]:
    """Check that a built-in part belongs to the task; `package.module:callable` is not checked."""
    name = settings[path]
    if name.value is None or ":" in str(name.value) or name.value in known[task]:
        return
    message = f"the built-in {what} `{name.value}` is not for {task}"
    takes = " or ".join(f"`{one}`" for one in known[task])
    yield Diagnostic(code, message, name.span or settings["task_type"].span, helps=(f"use {takes}",))
