"""R203: arguments of the built-in model stand under `model`, those of a callable under `args`."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog.tasks import default_loss
from ratc.diagnostics import Diagnostic, did_you_mean
from ratc.plan import Value, Values

_COMMON = ("model.name", "model.multi_scale", "model.args", "model.output")  # `attention_memory` is of `rat` too
_PAIRS = (
    ("model.name", "model.args", "rat"),
    ("data.dataset", "data.args", "coco"),
)
#: The arguments of each built-in loss: of segmentation with one foreground class and with several, of detection, and of
#: classification (`ratc_runtime.tasks.*.losses`; a test compares them).
LOSS_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "bce": ("positive_weight",),
    "dice": ("smooth",),
    "combined": ("bce_weight", "dice_weight", "smooth"),
}
CLASS_LOSS_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "cross_entropy": (),
    "dice": ("smooth",),
    "combined": ("cross_entropy_weight", "dice_weight", "smooth"),
}
BOX_LOSS_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "set_prediction": ("class_weight", "l1_weight", "giou_weight", "alpha", "gamma", "repeats"),
}
LABEL_LOSS_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("class_weights", "label_smoothing"),
}
#: The arguments of the built-in data sets (`ratc_runtime.data`).
DATA_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "folders": ("classes",),
    "csv": ("classes", "file"),
    "isic": ("mask_threshold",),
    "volumes": ("window", "overlap", "mask_threshold", "fill_nan"),
}


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that each argument is given to a model that takes it."""
    name = settings["model.name"].value
    if name != "rat":
        for path in settings:
            if path.startswith("model.") and path not in _COMMON and settings.given(path):
                key = path.rpartition(".")[2]
                message = f"`{key}` is an argument of the built-in model `rat`, not of `{name}`"
                yield Diagnostic("R203", message, settings[path].span, helps=(f"move it: `args: {{{key}: …}}`",))
    elif settings["model.output"].value is not None:
        message = "`model.output` is for custom models, not for `rat`"
        yield Diagnostic("R203", message, settings["model.output"].span, helps=("remove it",))
    for owner, args, built_in in _PAIRS:
        if settings[owner].value == built_in and settings[args].value:
            hint = "write RAT's arguments directly under `model`" if built_in == "rat" else "remove it"
            yield Diagnostic("R203", f"`{built_in}` takes no `args`", settings[args].span, helps=(hint,))
    task = settings.get_as(str, "task_type")
    known = LOSS_ARGUMENTS if settings["data.num_classes"].value == 1 else CLASS_LOSS_ARGUMENTS
    known = {"detection": BOX_LOSS_ARGUMENTS, "classification": LABEL_LOSS_ARGUMENTS}.get(task, known)
    loss, dataset = settings["training.loss"].value or default_loss(task), settings["data.dataset"].value
    if loss in known:
        yield from _unknown(settings["training.loss_args"], known[loss], f"the built-in loss `{loss}`")
    if dataset in DATA_ARGUMENTS:
        yield from _unknown(settings["data.args"], DATA_ARGUMENTS[dataset], f"the built-in dataset `{dataset}`")


def _unknown(given: Value, known: tuple[str, ...], owner: str) -> Iterator[Diagnostic]:
    takes = ", ".join(f"`{name}`" for name in known) or "none"
    for key in given.value:
        if key not in known:
            helps = did_you_mean(key, known) or (f"it takes {takes}",)
            yield Diagnostic("R203", f"{owner} takes no `{key}`", given.span, helps=helps)
