"""R203: arguments of the built-in model stand under `model`, those of a callable under `args`."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import Values

_COMMON = ("model.name", "model.multi_scale", "model.args")
_PAIRS = (("model.name", "model.args", "rat"), ("data.dataset", "data.args", "isic"))
_LOSSES = ("bce", "dice", "combined")


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
    if settings["training.loss"].value in _LOSSES and settings["training.loss_args"].value:
        message = f"the built-in loss `{settings['training.loss'].value}` takes no `loss_args`"
        yield Diagnostic("R203", message, settings["training.loss_args"].span, helps=("remove it",))
