"""The model's arguments, each concrete, so that a new release of the model's package changes nothing silently."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.memory.rat import FUSED_FROM, full_at_least, fused_runs_on, maps_alone, without_prediction
from ratc.resolve.context import Context

#: Bytes that are assumed for a host with unknown memory. Chosen, not measured.
UNKNOWN_HOST = 256 << 30
_OWN = ("model.name", "model.multi_scale", "model.args", "model.attention_memory", "model.output")


def derive(context: Context) -> Iterator[Diagnostic]:
    """Take the model's arguments: RAT's from `model` in the spec, a callable's from `args`. Codes: R312, R347."""
    settings = context.settings
    context.keep("model.name", "model.multi_scale")
    if settings["model.output"].value is not None:
        context.keep("model.output")
    yield from _attention(context)
    if settings["model.name"].value != "rat":
        context.keep_arguments("model.args")
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
            context.derive(under, max(1, kernel // 2), "half the kernel size", "spec:model.sga_kernel_size")
        elif path == "model.spacing" and settings[path].value is None:
            context.derive(under, 1.0, "pixels: no spacing is given", "spec:model.spacing")
        else:
            context.keep(path, under=under)
    given = settings["model.input_features"]
    if given.value is not None and given.value != channels.value:
        message = f"`input_features` is {given.value}, but `data.channels` is {channels.value}"
        yield Diagnostic("R312", message, given.span, helps=("remove it, or set `data.channels`",))


def _attention(context: Context) -> Iterator[Diagnostic]:
    path, asked, decision = "model.attention_memory", context.settings["model.attention_memory"], context.choice
    if context.settings["model.name"].value != "rat":
        context.derive(path, "full", "the model is not RAT", "spec:model.name")
    elif context.settings["model.sga_attention_type"].value != "dense":
        context.derive(path, "full", "its attention is not dense", "spec:model.sga_attention_type")
    elif asked.value != "auto":
        context.keep(path)
        device, capability = context.value("hardware.device"), context.value("hardware.compute_capability")
        if asked.value == "fused" and (device != "cuda" or not fused_runs_on(capability or "0.0")):
            card = context.value("hardware.card") or device
            where = f"on compute capability {capability}" if capability else f"on {card}"
            least = ".".join(map(str, FUSED_FROM))
            message = f"`attention_memory: fused` does not run {where}: its kernels need compute capability {least}"
            yield Diagnostic("R347", message, asked.span, helps=("write `chunked`, or `auto`",))
    else:
        usual, why = _without_prediction(context)
        if decision is None and context.decision is not None and context.decision.attention_memory != usual:
            decision = context.decision  # the spec's own micro-batch needs it
        if decision is None:
            context.derive(path, usual, why, "training.micro_batch_size", "hardware.memory_bytes")
            return
        why = decision.where + decision.attention_reason
        context.derive(path, decision.attention_memory, why, "spec:model.attention_memory", "hardware.card")


def _without_prediction(context: Context) -> tuple[str, str]:
    """Return the `attention_memory` and its reason by a bound, which needs no trace: attention without maps if the maps
    of one block alone exceed the card's memory.
    """
    # On the CPU the host's memory counts; if it is unknown, a size that few machines exceed.
    memory = context.value("hardware.memory_bytes") or context.facts["memory_bytes"].value or UNKNOWN_HOST
    samples = int(context.value("training.micro_batch_size"))
    capability = context.value("hardware.compute_capability") or "0.0"
    attention = without_prediction(context.settings, samples, memory, capability)
    if attention == "full":
        return "full", "the default: no prediction chose another"
    return attention, maps_alone(full_at_least(context.settings) * samples, memory, samples)
