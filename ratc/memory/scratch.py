"""Buffers whose size is not linear in the micro-batch, from the descriptions in a trace.

A trace holds the arguments of a kernel, or a tensor's shape (docs/reference/trace.md, ``scratch``); here are the rules
for the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ratc.memory import convolutions

#: `mnt_wrapper::MAX_NUM_THREADS`, the warp, and the values of a thread between which a reduction is split over blocks.
THREADS, WARP, FEWEST, MOST = 512, 32, 16, 256
#: Bytes of a partial sum: both kernels sum in fp32.
SUM = 4


@dataclass(frozen=True, slots=True)
class Processors:
    """A card's multiprocessors and the threads that one of them holds."""

    count: int
    threads: int


#: The largest card of each compute capability with shared traces (`Device.kernels`): P100, V100, A100, RTX 6000 Ada,
#: H100 and H200, B200, RTX PRO 6000; from NVIDIA's data sheets and `cudaDeviceProp`.
PROCESSORS: Mapping[str, Processors] = {
    "6.0": Processors(56, 2048),
    "7.0": Processors(80, 2048),
    "8.0": Processors(108, 2048),
    "8.6": Processors(142, 1536),
    "9.0": Processors(132, 2048),
    "10.0": Processors(148, 2048),
    "12.0": Processors(188, 1536),
}


def processors(capability: str) -> Processors:
    """Return the processors of the largest card of a compute capability ("9.0"), or of the next lower known one."""
    wanted = tuple(int(part) for part in capability.split("."))
    known = [name for name in PROCESSORS if tuple(int(part) for part in name.split(".")) <= wanted]
    return PROCESSORS[known[-1] if known else "6.0"]


@dataclass(frozen=True, slots=True)
class Scratch:
    """One buffer: the rule, and its arguments; ``fixed`` and ``slope`` give these at a micro-batch."""

    rule: str
    fixed: tuple[float, ...]
    slope: tuple[float, ...]

    def bytes_(self, micro_batch: int, processors: Processors) -> int:
        """Bytes of the buffer at a micro-batch."""
        return RULES[self.rule](processors, *self.numbers(micro_batch))

    def numbers(self, micro_batch: int) -> list[int]:
        """Return the rule's arguments at a micro-batch."""
        return [round(a + b * micro_batch) for a, b in zip(self.fixed, self.slope, strict=True)]


def _power(number: int) -> int:
    """The largest power of two that is not larger, at least 1."""
    return 1 << max(0, number.bit_length() - 1)


def reduction(processors: Processors, outputs: int, inputs: int, vector: int) -> int:
    """Return the bytes of the partial sums of ``outputs`` sums of ``inputs`` values each; a thread computes ``vector``
    adjacent sums at once.

    `setReduceConfig` and `global_memory_size` of aten/src/ATen/native/cuda/Reduce.cuh (torch 2.13), for sums that do
    not run along the densest dimension; the others leave less than 1 MiB.
    """
    most = THREADS // vector
    wide, high = min(_power(outputs // vector), most), min(_power(inputs), most)
    width = min(wide, WARP)
    height = min(high, most // width)
    width = min(wide, most // height)
    if inputs < min(height * FEWEST, MOST):
        return 0  # each warp makes sums of its own
    values = -(-inputs // height)
    grid = -(-(outputs // vector) // width)
    room = processors.count * (processors.threads // (width * height))
    if values < MOST or grid > room:
        return 0
    blocks = max(min(-(-room // grid), -(-values // FEWEST)), -(-values // MOST))
    return SUM * outputs * blocks * width * vector if blocks > 1 else 0


def segments(processors: Processors, indices: int, rows: int, width: int) -> int:
    """Return the bytes of buffers for the gradient of an embedding of shape (``rows``, ``width``) and ``indices``
    look-ups: sums of segments of sorted indices, and the buffers of the sort.

    `embedding_backward_cuda_kernel` of aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu: segments of at most 10
    indices; up to 3,072 indices another kernel needs none. The sort's 48 bytes an index were read off an H200.
    """
    return SUM * width * (indices // 10 + min(indices, rows)) + 48 * indices if indices > 3072 else 0


@lru_cache(maxsize=4096)
def convolution(processors: Processors, *numbers: int) -> int:
    """Return the bytes of a pass's workspace; ``numbers`` as in `ratc.memory.convolutions.described`."""
    return convolutions.workspace(*convolutions.described(numbers), processors.count)


def product(processors: Processors, *sides: int) -> int:
    """Return the bytes of a tensor with several sides that depend on the micro-batch. ``sides`` are the bytes of an
    element, then the tensor's shape.
    """
    return math.prod(sides)


RULES: Mapping[str, Callable[..., int]] = {
    "convolution": convolution,
    "product": product,
    "reduction": reduction,
    "segments": segments,
}


#: Bytes or elements that no step has for one sample: 1 PiB.
LARGEST = 1 << 50


def read(content: Any) -> Scratch:
    """Return the buffer that a trace describes as [rule, [fixed, per sample], ...].

    Raises ValueError or TypeError for any other content.
    """
    rule, *numbers = content
    if rule not in RULES or not all(0 <= a + b <= LARGEST and 0 <= b <= LARGEST for a, b in numbers):
        raise ValueError(f"scratch {str(content)[:60]}")
    found = Scratch(rule, tuple(float(a) for a, _ in numbers), tuple(float(b) for _, b in numbers))
    if rule == "convolution" and any(found.slope[:4]):
        raise ValueError(f"another convolution for every batch: {str(content)[:60]}")
    found.bytes_(1, PROCESSORS["9.0"])  # a wrong number of numbers is a TypeError
    return found
