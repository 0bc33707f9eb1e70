"""R203: arguments of the built-in model stand under `model`, those of a callable under `args`."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, did_you_mean
from ratc.plan import Values

_COMMON = ("model.name", "model.multi_scale", "model.args")  # `attention_memory` is of `rat` too
_PAIRS = (("model.name", "model.args", "rat"), ("data.dataset", "data.args", "isic"))
#: What each built-in loss takes (`ratc_runtime.tasks.segmentation.losses`; a test compares the two).
LOSS_ARGUMENTS = {
    "bce": ("positive_weight",),
    "dice": ("smooth",),
    "combined": ("bce_weight", "dice_weight", "smooth"),
}


def check(settings: Values) -> Iterator[Diagnostic]:
    """No argument is given to something that does not take it."""
    name = settings["model.name"].value
    if name != "rat":
        for path in settings:
            if path.startswith("model.") and path not in _COMMON and settings.given(path):
                key = path.rpartition(".")[2]
                message = f"`{key}` is an argument of the built-in model `rat`, not of `{name}`"
                yield Diagnostic("R203", message, settings[path].span, helps=(f"move it: `args: {{{key}: …}}`",))
    for owner, args, built_in in _PAIRS:
        if settings[owner].value == built_in and settings[args].value:
            hint = "write RAT's arguments directly under `model`" if built_in == "rat" else "remove it"
            yield Diagnostic("R203", f"`{built_in}` takes no `args`", settings[args].span, helps=(hint,))
    loss, given = settings["training.loss"].value, settings["training.loss_args"]
    for key in given.value if loss in LOSS_ARGUMENTS else ():
        if key not in LOSS_ARGUMENTS[loss]:
            takes = ", ".join(f"`{name}`" for name in LOSS_ARGUMENTS[loss])
            helps = did_you_mean(key, LOSS_ARGUMENTS[loss]) or (f"it takes {takes}",)
            yield Diagnostic("R203", f"the built-in loss `{loss}` takes no `{key}`", given.span, helps=helps)
