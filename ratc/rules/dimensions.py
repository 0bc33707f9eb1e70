"""R210 and R213: model, sizes and data set agree on two dimensions or three, and on the channels."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog.tasks import DATASETS, DIMENSIONS
from ratc.diagnostics import Diagnostic
from ratc.memory.images import dims
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that `image_size` has a number for every dimension, and that the data set has as many dimensions."""
    size, dataset, model = settings["data.image_size"], settings["data.dataset"], settings["model.spatial_dims"]
    wanted = dims(settings)
    if isinstance(size.value, list) and len(size.value) != wanted:
        message = f"`image_size` has {len(size.value)} numbers, and the model is {wanted}D"
        helps = (f"write {wanted} numbers, or `model.spatial_dims: {len(size.value)}`",)
        yield Diagnostic("R210", message, size.span, helps=helps)
    if dataset.value not in DIMENSIONS:
        return
    has = DIMENSIONS[dataset.value]
    holds = "images" if has == 2 else "volumes"
    if has != wanted:
        rat = settings["model.name"].value == "rat"
        message = (
            f"the dataset `{dataset.value}` holds {has}D {holds}, and the {'model' if rat else 'image'} is {wanted}D"
        )
        change = f"set `model.spatial_dims: {has}`" if rat else f"give `image_size` {has} numbers"
        of_task = DATASETS[settings.get_as(str, "task_type")]
        others = [f"use `{name}`" for name in of_task if DIMENSIONS[name] == wanted]
        helps = (", or ".join([change, *others]),)
        yield Diagnostic("R213", message, dataset.span or model.span or size.span, helps=helps)
    channels = settings["data.channels"]
    if has == 2 and channels.value not in (1, 3):
        message = f"the dataset `{dataset.value}` holds images of 1 or 3 channels, not {channels.value}"
        yield Diagnostic("R213", message, channels.span, helps=("use 1 for grey, 3 for RGB",))
