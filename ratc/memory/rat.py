"""Arithmetic of RAT: how its grids shrink, and a lower bound of the bytes that its dense attention keeps."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ratc.memory.images import sides
from ratc.plan import Values
from ratc.units import counted, size_text


def shrink(length: int, kernel: int, stride: int) -> int:
    """Return the tokens along one side after a block: a strided convolution with padding (kernel - 1) // 2, as
    `SpatialGroupingAttention` has it.
    """
    if stride == 1:
        return length
    return max(0, (length + 2 * ((kernel - 1) // 2) - kernel) // stride + 1)


#: The least compute capability for which FlexAttention's kernels are made.
FUSED_FROM = (8, 0)


def fused_runs_on(capability: str) -> bool:
    """Whether FlexAttention has kernels for a compute capability, as "8.0"."""
    return tuple(int(part) for part in capability.split(".")) >= FUSED_FROM


def without_maps(capability: str) -> str:
    """The `attention_memory` that keeps no maps and is the faster one on a compute capability."""
    return "fused" if fused_runs_on(capability) else "chunked"


def without_prediction(settings: Values, samples: int, memory: int, capability: str) -> str:
    """Return the `attention_memory` for `auto` and a micro-batch of ``samples`` by a bound alone: one without maps if
    the maps of one block exceed ``memory`` bytes.
    """
    return without_maps(capability) if full_at_least(settings) * samples > memory else "full"


def full_at_least(settings: Values, size: Sequence[int] | None = None) -> int:
    """Return a lower bound of the bytes per sample that a spec's RAT keeps with `full` attention; 0 if not dense. With
    ``size`` for that size of images instead of the spec's.
    """
    if settings["model.name"].value != "rat" or settings["model.sga_attention_type"].value != "dense":
        return 0
    kernel, heads, iters = (settings.get_as(int, f"model.{key}") for key in ("sga_kernel_size", "num_heads", "iters"))
    stride = settings.maybe(int, "model.stride") or max(1, kernel // 2)
    return map_bytes(size or sides(settings), kernel, stride, heads, iters)


def maps_alone(least: int, memory: int, samples: int) -> str:
    """Return the reason why `full` attention cannot fit: the ``least`` bytes that it takes for ``samples``, and the
    bytes of the card or the machine (``memory``).
    """
    return (
        f"one block's maps alone would take {size_text(least)} of {size_text(memory)} with {counted(samples, 'sample')}"
    )


def map_bytes(sides: Sequence[int], kernel: int, stride: int, heads: int, iters: int) -> int:
    """Return a lower bound of the bytes per sample that the first block's `full` attention keeps for backward.

    `DenseSpatialGroupingAttention` makes two maps of heads x groups x pixels in each iteration, the softmax and the
    normalised one, in fp32 under autocast too; both are saved.
    """
    groups = prod(shrink(side, kernel, stride) for side in sides)
    return 2 * 4 * iters * heads * groups * prod(sides)
