"""R215 to R218: loss and data set fit the task, detection has a number of classes, and no key is of another task."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog.tasks import DATASETS, LOSSES
from ratc.diagnostics import Diagnostic
from ratc.memory.images import dims
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that keys of one task are not given to another. A custom task has nothing built in (R226)."""
    task = settings.get_as(str, "task_type")
    if task != "custom":
        yield from _of_task(settings, task, "training.loss", "loss", LOSSES, "R215")
        yield from _of_task(settings, task, "data.dataset", "data set", DATASETS, "R216")
    if task == "detection":
        if not settings.given("data.num_classes"):
            message = "detection needs `data.num_classes`, the number of classes of objects"
            helps = ("set it to the number of `categories` in the annotations",)
            yield Diagnostic("R217", message, settings["task_type"].span, helps=helps)
        yield from _of_segmentation(settings)
        return
    for path in ("detection.queries", "detection.decoder_layers"):
        if settings.given(path):
            message = f"`{path}` belongs to `task_type: detection`, and this is {task}"
            yield Diagnostic("R218", message, settings[path].span, helps=("remove it, or set the task",))


def _of_segmentation(settings: Values) -> Iterator[Diagnostic]:
    """Check that detection has 2D images, and no keys for ignored pixels or surface distances."""
    for path in ("data.ignore_index", "evaluation.hausdorff"):
        if settings[path].value:
            message = f"`{path}` belongs to `task_type: segmentation`, and this is detection"
            yield Diagnostic("R218", message, settings[path].span, helps=("remove it, or set the task",))
    if dims(settings) != 2:
        span = settings["model.spatial_dims"].span or settings["data.image_size"].span
        yield Diagnostic("R218", "detection is of images, and this is 3D", span, helps=("set `spatial_dims: 2`",))


def _of_task(
    settings: Values, task: str, path: str, what: str, known: dict[str, tuple[str, ...]], code: str
) -> Iterator[Diagnostic]:
    """Check that a built-in part belongs to the task; `package.module:callable` is not checked."""
    name = settings[path]
    if name.value is None or ":" in str(name.value) or name.value in known[task]:
        return
    message = f"the built-in {what} `{name.value}` is not of {task}"
    takes = " or ".join(f"`{one}`" for one in known[task])
    yield Diagnostic(code, message, name.span or settings["task_type"].span, helps=(f"use {takes}",))
