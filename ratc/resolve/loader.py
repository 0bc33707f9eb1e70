"""How samples reach the device: pinning, and batches that are prepared ahead."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ratc.diagnostics import Diagnostic
from ratc.parts import kinds
from ratc.resolve.context import Context
from ratc.units import size_text

#: Batches that each loader process prepares ahead, least and most: enough to bridge a batch that takes longer. Chosen,
#: not measured.
LEAST_AHEAD, MOST_AHEAD = 2, 8
#: Divisor of the host's memory that gives the room for prepared batches. Chosen, not measured.
AHEAD_SHARE = 8


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive pinning, persistent workers and prefetching from the number of loader processes."""
    settings = context.settings
    count = int(context.value("data.num_workers"))
    cuda = context.value("hardware.device") == "cuda"
    if settings["data.pin_memory"].value is None:
        pin = cuda and bool(settings["data.auto_optimize"].value)
        why = "speeds copies to the GPU" if pin else ("auto_optimize is false" if cuda else "no GPU to copy to")
        context.derive("data.pin_memory", pin, why, "hardware.device")
    else:
        context.keep("data.pin_memory")
    context.derive(
        "data.persistent_workers",
        count > 0,
        "loader processes are kept from epoch to epoch" if count else "no loader processes",
        "data.num_workers",
    )
    _prefetch(context, count)
    yield from ()


def _prefetch(context: Context, workers: int) -> None:
    """Derive the batches that each loader process prepares ahead: one and its share of a step, if memory allows."""
    path, asked = "data.prefetch_factor", context.settings["data.prefetch_factor"]
    if not workers:
        context.derive(path, None, "no loader processes", "data.num_workers")
        return
    if asked.value is not None:
        context.keep(path)
        return
    if not context.settings["data.auto_optimize"].value:
        context.derive(path, LEAST_AHEAD, "auto_optimize is false", "spec:data.auto_optimize")
        return
    steps = int(context.value("training.gradient_accumulation_steps"))
    wanted = min(MOST_AHEAD, LEAST_AHEAD - 1 + -(-steps // workers))
    inputs = ["data.num_workers", "training.gradient_accumulation_steps"]
    why = f"{wanted * workers} micro-batches ahead of steps of {steps}"
    memory, source = context.node_memory()
    if memory is not None:
        processes = int(context.value("parallel.processes_per_node"))
        batch = _batch_bytes(context)
        room = memory // AHEAD_SHARE // (batch * workers * processes)
        inputs += ["training.micro_batch_size", "data.image_size", "data.channels", source]
        if room < wanted:
            wanted = max(1, room)
            ahead = wanted * workers * processes
            why = f"{ahead} micro-batches of {batch / 2**20:.0f} MiB ahead on a node of {size_text(memory)}"
    context.derive(path, wanted, why, *inputs)


def _batch_bytes(context: Context) -> int:
    """Return the bytes of a micro-batch in host memory: images of all scales and a mask, as float32."""
    sides = context.value("data.image_size")
    pixels = prod(sides)
    scales = context.value("data.scales")
    images = sum(pixels * scale ** len(sides) * context.value("data.channels") for scale in scales)
    tasks = max(1, len(kinds(context.settings)))
    return int(context.value("training.micro_batch_size") * tasks * (images + pixels) * 4)
