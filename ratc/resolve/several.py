"""Several tasks: the concrete values of each one."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog.tasks import class_names, default_loss
from ratc.diagnostics import Diagnostic
from ratc.parts import parts
from ratc.resolve.context import Context


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive kind, weight, loss, data and head of each task; nothing if there is one."""
    for name, part in parts(context.settings).items():
        at, kind = f"tasks.{name}", part.get_as(str, "task_type")
        context.keep(f"{at}.task_type", f"{at}.weight")
        if part["training.loss"].value is None:
            context.derive(f"{at}.loss.name", default_loss(kind), f"the loss of {kind}", f"spec:{at}.task_type")
        else:
            context.keep(f"{at}.loss", under=f"{at}.loss.name")
        context.keep_arguments(f"{at}.loss_args", under=f"{at}.loss.args")
        context.keep(f"{at}.data.folder")
        if context.settings[f"{at}.data.dataset"].value is None:
            dataset = part["data.dataset"].value
            context.derive(f"{at}.data.dataset", dataset, f"the data set of {kind}", f"spec:{at}.task_type")
        else:
            context.keep(f"{at}.data.dataset")
        context.keep_arguments(f"{at}.data.args")
        context.keep(f"{at}.data.num_classes")
        if part["data.class_names"].value is None:
            names = class_names(kind, part.get_as(int, "data.num_classes"))
            inputs = (f"spec:{at}.data.num_classes", f"spec:{at}.task_type")
            context.derive(f"{at}.data.class_names", names, "the spec gives no names", *inputs)
        else:
            context.keep(f"{at}.data.class_names")
        context.keep(f"{at}.data.ignore_index")
        if kind == "detection":
            context.keep(f"{at}.detection.queries", f"{at}.detection.decoder_layers")
    yield from ()
