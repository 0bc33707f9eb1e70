"""Arithmetic of RAT: how its grids shrink, and what its dense attention keeps at the least."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod


def shrink(length: int, kernel: int, stride: int) -> int:
    """Tokens along one side after a block: a strided convolution with padding (kernel - 1) // 2, as
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


def map_bytes(sides: Sequence[int], kernel: int, stride: int, heads: int, iters: int) -> int:
    """A lower bound, in bytes a sample, of what the first block's attention keeps for backward when it is `full`.

    `DenseSpatialGroupingAttention` makes two maps of heads x groups x pixels in each iteration, the softmax and the
    normalised one, in fp32 under autocast too; both are saved.
    """
    groups = prod(shrink(side, kernel, stride) for side in sides)
    return 2 * 4 * iters * heads * groups * prod(sides)
