"""The passes of convolutions: the copies that each makes before its result, and their description for the compiler.

The bytes of cuDNN's workspace are not part of the trace: `ratc/memory/convolutions.py` computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ratc_runtime.trace.scratch import Scratch

aten: Any = torch.ops.aten
OPERATORS = frozenset((aten.convolution.default, aten.convolution_backward.default))
#: Their numbers in a description.
DIRECTIONS = {"forward": 0, "input": 1, "weight": 2}
BF16, FP16, TF32, FP32 = range(4)


@dataclass(frozen=True)
class Pass:
    """One of the passes that an operator makes: copies made before its result, the result, and its workspace, which a
    bias's gradient does not have.
    """

    copies: tuple[int, ...]
    result: torch.Tensor
    workspace: Scratch | None


def passes(operator: Any, args: tuple[Any, ...], out: Any, tf32: bool) -> list[Pass]:
    """Return the passes of a call of one of OPERATORS, in cuDNN's order; ``tf32`` is `cudnn.allow_tf32`.

    Follows `_convolution` and `convolution_backward` in aten/src/ATen/native/Convolution.cpp and the functions of
    aten/src/ATen/native/cudnn/ConvShared.cpp: tensors in another layout than the convolution's are copied before.
    """
    if operator is aten.convolution.default:
        numbers, layout = _numbers(args[0], args[1], out, args[3], args[6], args[8], tf32)
        return [Pass(_copies(layout, args[0], args[1]), out, _described("forward", numbers))]
    gradient, given, weight = args[:3]
    numbers, layout = _numbers(given, weight, gradient, args[4], args[7], args[9], tf32)
    copies = _copies(layout, gradient)
    found = [
        Pass(() if number else copies, result, _described(direction, numbers))
        for number, (direction, result) in enumerate((("input", out[0]), ("weight", out[1])))
        if result is not None
    ]
    bias = out[2]
    return found if bias is None else [*found, Pass((), bias, None)]


def is_channels_last(operator: Any, args: tuple[Any, ...]) -> bool:
    """Return whether cuDNN is called with channels last, by image and weight."""
    given, weight = args[:2] if operator is aten.convolution.default else args[1:3]
    return _layout(given, weight) is not torch.contiguous_format


def _layout(given: torch.Tensor, weight: torch.Tensor) -> torch.memory_format:
    suggested = [torch._prims_common.suggest_memory_format(tensor) for tensor in (given, weight)]
    return next((form for form in suggested if form is not torch.contiguous_format), torch.contiguous_format)


def _described(direction: str, numbers: tuple[int, ...]) -> Scratch:
    return Scratch("convolution", (DIRECTIONS[direction], *numbers))


def _numbers(
    given: torch.Tensor,
    weight: torch.Tensor,
    output: torch.Tensor,
    stride: Any,
    transposed: bool,
    groups: int,
    tf32: bool,
) -> tuple[tuple[int, ...], torch.memory_format]:
    """Return the numbers of docs/reference/trace.md after the direction, and the layout of the call of cuDNN."""
    layout = _layout(given, weight)
    half = {torch.bfloat16: BF16, torch.float16: FP16}
    arithmetic = half.get(given.dtype, TF32 if tf32 and given.dtype == torch.float32 else FP32)
    last = layout is not torch.contiguous_format
    kernel = tuple(weight.shape[2:])
    strides = tuple(stride) * (len(kernel) if len(stride) == 1 else 1)
    sizes = given.shape[0], given.shape[1], output.shape[1], groups, given.numel(), output.numel()
    return (arithmetic, int(last), int(transposed), *sizes, *kernel, *strides), layout


def _copies(layout: torch.memory_format, *tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(t.numel() * t.element_size() for t in tensors if not t.is_contiguous(memory_format=layout))
