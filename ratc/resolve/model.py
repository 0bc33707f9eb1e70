"""The model's arguments, each concrete, so that a new release of the model's package changes nothing in silence."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import Value
from ratc.resolve.context import Context

_OWN = ("model.name", "model.multi_scale", "model.args")


def derive(context: Context) -> Iterator[Diagnostic]:
    """RAT's arguments stand under `model` in a spec; a callable's under `args`. Code: R312."""
    settings = context.settings
    context.keep("model.name", "model.multi_scale")
    if settings["model.name"].value != "rat":
        args = settings["model.args"]
        for key, value in args.value.items():
            context.values[f"model.args.{key}"] = Value(
                value, args.origin, args.reason, ("spec:model.args",), args.span
            )
        if not args.value:
            context.keep("model.args")
        return
    channels = settings["data.channels"]
    for path in settings:
        if not path.startswith("model.") or path in _OWN:
            continue
        under = path.replace("model.", "model.args.", 1)
        if path == "model.input_features" and settings[path].value is None:
            context.derive(under, channels.value, "data.channels", "spec:data.channels")
        elif path == "model.stride" and settings[path].value is None:
            kernel = settings.get_as(int, "model.sga_kernel_size")
            context.derive(under, max(1, kernel // 2), "half the kernel", "spec:model.sga_kernel_size")
        elif path == "model.spacing" and settings[path].value is None:
            context.derive(under, 1.0, "pixels, where no spacing is given")
        else:
            context.keep(path, under=under)
    given = settings["model.input_features"]
    if given.value is not None and given.value != channels.value:
        message = f"`input_features` is {given.value}, but `data.channels` is {channels.value}"
        yield Diagnostic("R312", message, given.span, helps=("remove it, or set `data.channels`",))
