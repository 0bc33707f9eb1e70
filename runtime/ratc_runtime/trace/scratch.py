"""Buffers of CUDA's kernels whose size is not linear in the batch: described here, computed by the compiler.

A sum over many rows is made by several blocks, which leave partial sums in a buffer of the caching allocator. Their
number depends on the card, and not linearly on the batch. So a trace holds the kernel's input, and
`ratc/memory/scratch.py` the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Scratch:
    """The rule of `ratc/memory/scratch.py`, and its numbers at this batch size."""

    rule: str
    numbers: tuple[int, ...]


def described(operator: Any, args: tuple[Any, ...]) -> Scratch | None:
    """Return the description of a kernel's memory beside its results, or None."""
    if operator in (aten.sum.dim_IntList, aten.mean.dim):
        return reduction(args[0], args[1])
    if operator is aten.convolution_backward.default and args[10][2]:
        return reduction(args[0], [dim for dim in range(args[0].dim()) if dim != 1])
    if operator is aten.embedding_dense_backward.default:
        gradient, indices, rows = args[:3]
        return Scratch("segments", (indices.numel(), rows, gradient.shape[-1]))
    return None


def reduction(given: torch.Tensor, dims: Any) -> Scratch | None:
    """Return outputs, inputs and vector of the sum of a tensor, of any shape, over dimensions, as in `setReduceConfig`.

    A tensor iterator merges dimensions that follow one another in memory. None if the sum runs along the densest
    dimension: its partial sums take less than 1 MiB.
    """
    if not dims or not given.dim():
        return None
    summed = {dim % given.dim() for dim in dims}
    sizes = [(given.stride(dim), given.shape[dim], dim in summed) for dim in range(given.dim()) if given.shape[dim] > 1]
    inner = _merged([(stride, size) for stride, size, reduced in sizes if reduced])
    outer = _merged([(stride, size) for stride, size, reduced in sizes if not reduced])
    if not inner or not outer or given.numel() == 0 or min(inner[0][0], outer[0][0]) < 1 or inner[0] < outer[0]:
        return None
    strides = [stride for stride, _ in (*inner, *outer[1:])]
    vector = math.gcd(4, outer[0][1], *strides) if outer[0][0] == 1 else 1
    outputs, inputs = (math.prod(size for _, size in runs) for runs in (outer, inner))
    return Scratch("reduction", (outputs, inputs, vector))


def _merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge (stride, size) that follow one another in memory, densest first."""
    merged: list[tuple[int, int]] = []
    for stride, size in sorted(runs):
        if merged and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = (merged[-1][0], merged[-1][1] * size)
        else:
            merged.append((stride, size))
    return merged
