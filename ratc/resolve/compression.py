"""The compression of the model, if any. Codes: R350, R351, R352."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.resolve.context import Context
from ratc.units import counted

_AT = "compression"


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive the values of `compression`; none if the spec has no such section."""
    settings = context.settings
    given = [settings[path] for path in settings if path.startswith(f"{_AT}.") and settings.given(path)]
    if not given:
        return
    sparsity, begin = settings[f"{_AT}.sparsity"], settings[f"{_AT}.begin_epoch"]
    quantization, aware = settings[f"{_AT}.quantization"], settings[f"{_AT}.aware"]
    if (begin.value is not None or settings[f"{_AT}.structured"].value) and not sparsity.value:
        span = begin.span or settings[f"{_AT}.structured"].span
        yield Diagnostic("R352", "nothing is pruned: `sparsity` is 0", span, helps=("set how much: `sparsity: 0.5`",))
        return
    if aware.value and quantization.value == "none":
        helps = ("set `quantization: weight_only`",)
        yield Diagnostic("R352", "`aware` is true, but `quantization` is none", aware.span, helps=helps)
        return
    while_training = begin.value is not None or aware.value
    if while_training and context.value("engine.deepspeed"):
        message = "pruning and rounding in training need whole weights, and DeepSpeed keeps them in pieces"
        helps = ("use `deepspeed: false`, or prune and quantize after training",)
        yield Diagnostic("R350", message, (begin if begin.value is not None else aware).span, helps=helps)
        return
    context.keep(f"{_AT}.sparsity", f"{_AT}.structured", f"{_AT}.begin_epoch")
    yield from _schedule(context)
    context.keep(f"{_AT}.quantization", f"{_AT}.aware")
    if settings[f"{_AT}.metric"].value is None:
        best = context.value("checkpoint.best_metric")
        context.derive(f"{_AT}.metric", best, "the score that ranks checkpoints", "checkpoint.best_metric")
    else:
        context.keep(f"{_AT}.metric")
    context.keep(f"{_AT}.tolerance")


def _schedule(context: Context) -> Iterator[Diagnostic]:
    settings, path = context.settings, f"{_AT}.end_epoch"
    begin, end = settings[f"{_AT}.begin_epoch"], settings[path]
    epochs = context.value("training.epochs")
    if begin.value is None:
        if end.value is not None:
            helps = ("give its beginning: `begin_epoch`",)
            yield Diagnostic(
                "R351",
                "`end_epoch` needs `begin_epoch`: without it, pruning is done after training",
                end.span,
                helps=helps,
            )
        context.derive(path, None, "pruned after training", f"spec:{_AT}.begin_epoch")
        return
    if end.value is None:
        last = max(begin.value, -(-3 * epochs // 4))
        context.derive(
            path, last, f"three quarters of {counted(epochs, 'epoch')}", "training.epochs", f"spec:{_AT}.begin_epoch"
        )
    else:
        context.keep(path)
    last = context.value(path)
    debug = settings["debug"].value
    if not debug and not begin.value <= last < epochs:
        message = f"pruning from epoch {begin.value} to {last} leaves no epoch of {epochs} to recover in"
        if begin.value > last:
            message = f"pruning would end in epoch {last}, before it begins in epoch {begin.value}"
        yield Diagnostic("R351", message, end.span or begin.span, helps=("choose an earlier `end_epoch`",))
