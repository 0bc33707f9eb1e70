"""The workspaces of cuDNN's convolutions: bytes that a kernel takes while it runs, beside its input and output.

cuDNN chooses an engine by heuristics that are not published. The rules here were read off a survey of 1,696
convolutions on an H200 with cuDNN 9.19; `benchmarks/memory/workspaces.py` prints how well they hold. In short: kernels
for 16-bit types and TF32 work on NHWC tensors, and strict fp32 on NCHW ones, so that a tensor in the other layout is
copied: input, weight and output each once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ratc_runtime.trace.partial_sums import HALF, TF32, UNIT

aten: Any = torch.ops.aten
Direction = Literal["forward", "input", "weight"]
Arithmetic = Literal["bf16", "fp16", "tf32", "fp32"]

#: Multiprocessors of the card that was measured: as many tiles of a weight's gradient are summed at once.
MULTIPROCESSORS = 132
#: Units of partial sums that fp16 takes for the few channels of a first layer, at most.
FEW = 32
#: Strict fp32 convolutions of 3 x 3 whose forward pass took whole Fourier transforms in the survey, at a batch of 64
#: and the first at 16 too: channels, features and side of the output. No rule was found for when; a trace does not know
#: its batch, so they are taken at any, and the workspace is one without which a step runs, too.
FOURIER = {(64, 128, 64), (128, 128, 28), (128, 256, 32), (256, 256, 14), (256, 256, 32), (512, 512, 16)}


@dataclass(frozen=True)
class Convolution:
    """A convolution: sizes in elements, `kernel` and `stride` by dimension, `itemsize` in bytes."""

    batch: int
    channels: int
    features: int
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    transposed: bool
    channels_last: bool
    itemsize: int
    arithmetic: Arithmetic

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is one element."""
        return math.prod(self.kernel) == 1

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.channels * self.features // self.groups * math.prod(self.kernel)


@dataclass(frozen=True)
class Pass:
    """One of the passes that an operator makes: copies made before its result, the result, and its workspace."""

    copies: tuple[int, ...]
    result: torch.Tensor
    workspace: Workspace


@dataclass(frozen=True)
class Workspace:
    """Bytes, and whether the rule is one that held for the rows of the survey like this one; else a bound."""

    bytes_: int
    sure: bool = True


NONE = Workspace(0)
OPERATORS = frozenset((aten.convolution.default, aten.convolution_backward.default))


def passes(operator: Any, args: tuple[Any, ...], out: Any, tf32: bool) -> list[Pass]:
    """Return the passes of a call of one of OPERATORS, in cuDNN's order; ``tf32`` is `cudnn.allow_tf32`.

    Follows `_convolution` and `convolution_backward` in aten/src/ATen/native/Convolution.cpp and the functions of
    aten/src/ATen/native/cudnn/ConvShared.cpp: tensors in another layout than the convolution's are copied before.
    """
    if operator is aten.convolution.default:
        conv, layout = _described(args[0], args[1], out, args[3], args[6], args[8], tf32)
        return [Pass(_copies(layout, args[0], args[1]), out, workspace(conv, "forward"))]
    gradient, given, weight = args[:3]
    conv, layout = _described(given, weight, gradient, args[4], args[7], args[9], tf32)
    copies = _copies(layout, gradient)
    directions: tuple[tuple[Direction, Any], ...] = (("input", out[0]), ("weight", out[1]))
    found = [
        Pass(() if number else copies, result, workspace(conv, direction))
        for number, (direction, result) in enumerate(directions)
        if result is not None
    ]
    bias = out[2]
    return found if bias is None else [*found, Pass((), bias, NONE)]


def _described(
    given: torch.Tensor,
    weight: torch.Tensor,
    output: torch.Tensor,
    stride: Any,
    transposed: bool,
    groups: int,
    tf32: bool,
) -> tuple[Convolution, torch.memory_format]:
    suggested = [torch._prims_common.suggest_memory_format(tensor) for tensor in (given, weight)]
    layout = next((form for form in suggested if form is not torch.contiguous_format), torch.contiguous_format)
    types: dict[torch.dtype, Arithmetic] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    conv = Convolution(
        batch=given.shape[0],
        channels=given.shape[1],
        features=output.shape[1],
        inputs=given.numel(),
        outputs=output.numel(),
        kernel=tuple(weight.shape[2:]),
        stride=tuple(stride),
        groups=groups,
        transposed=transposed,
        channels_last=layout is not torch.contiguous_format,
        itemsize=given.element_size(),
        arithmetic=types.get(given.dtype, "tf32" if tf32 and given.dtype == torch.float32 else "fp32"),
    )
    return conv, layout


def _copies(layout: torch.memory_format, *tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(t.numel() * t.element_size() for t in tensors if not t.is_contiguous(memory_format=layout))


def workspace(conv: Convolution, direction: Direction) -> Workspace:
    """Return what a convolution takes in a direction: its own pass, the input's gradient or the weight's."""
    if conv.groups > 1:
        return _grouped(conv, direction)
    if conv.arithmetic == "fp32":
        return _fp32(conv, direction)
    if conv.channels_last:
        return _native_layout(conv, direction)
    return _copied(conv, direction)


def _padded(count: int, channels: int, multiple: int) -> int:
    """Elements of a tensor whose channels are padded to a multiple, as tensor cores want them."""
    return count // channels * -(-channels // multiple) * multiple


def copies(conv: Convolution, direction: Direction) -> int:
    """Bytes of a copy of input, weight and output, channels padded; a 1 x 1 weight needs none."""
    multiple = 1 if conv.itemsize == 4 else 8 if conv.arithmetic == "bf16" or direction == "input" else 4
    elements = _padded(conv.inputs, conv.channels, multiple) + _padded(conv.outputs, conv.features, multiple)
    if not conv.pointwise:
        elements += _padded(_padded(conv.weights, conv.channels, multiple), conv.features, multiple)
    return elements * conv.itemsize


def _partial_sums(conv: Convolution) -> int:
    """Bytes of the weight's gradient summed in parts, as many as keep every multiprocessor busy; an upper bound.

    The most that was measured for a gradient of this shape, at batches that fill the card; for other shapes a formula:
    tiles of fp32 values grow with the gradient, 64 x 64, 128 x 64, 128 x 128, and 128 x 256 for 16-bit types.
    """
    rows, rest = (conv.channels, conv.features) if conv.transposed else (conv.features, conv.channels)
    columns = rest * math.prod(conv.kernel)
    half = conv.itemsize == 2
    if conv.arithmetic == "fp16" and conv.channels < 8:
        return FEW * UNIT
    known = (HALF if half else TF32).get((rows, columns))
    if known is not None:
        return known * UNIT
    high, wide = (64, 64) if rows <= 64 else (128, 64 if columns < 1024 else 128)
    if half and rows >= 256:
        return 4 * high * min(256, columns) * MULTIPROCESSORS
    tiles = -(-rows // high) * -(-columns // wide)
    parts = MULTIPROCESSORS // tiles
    if half:
        return 4 * high * wide * tiles * max(0, parts - 1)  # the first part is the result itself
    return 4 * high * wide * (tiles * parts if parts > 1 else MULTIPROCESSORS)


def _copied(conv: Convolution, direction: Direction) -> Workspace:
    """16-bit types and TF32 on NCHW tensors."""
    strided = max(conv.stride) > 1
    if conv.pointwise and not strided:
        aligned = (conv.outputs // (conv.batch * conv.features)) * conv.itemsize % 16 == 0
        if aligned and direction != "weight":
            return NONE
        if aligned and len(conv.kernel) < 3:
            return Workspace(conv.batch * 4 * conv.weights)  # a product a sample, summed afterwards
        if aligned:
            return Workspace(2 * copies(conv, direction), sure=False)
    few = conv.channels * conv.itemsize < 16
    first = few and direction == "forward" and max(conv.kernel) <= 3 and conv.features <= 32
    if first and (conv.arithmetic != "fp16" or len(conv.kernel) < 3):
        return NONE  # a kernel for first layers
    if few and conv.arithmetic == "tf32" and direction != "weight":
        large = direction == "forward" and max(conv.kernel) > 4
        return Workspace(copies(conv, direction) if large else 0, sure=False)
    size = copies(conv, direction)
    if direction == "weight":
        size += _partial_sums(conv)
    return Workspace(size, sure=conv.arithmetic != "tf32")


def _native_layout(conv: Convolution, direction: Direction) -> Workspace:
    """16-bit types and TF32 on NHWC tensors: what does not fit 16 bytes is padded, partial sums are kept."""
    size = 0
    few = conv.channels * conv.itemsize % 16 != 0
    volume, tf32 = len(conv.kernel) == 3, conv.arithmetic == "tf32"
    if conv.pointwise:
        pass
    elif tf32 and volume and direction == "weight":
        size = copies(conv, direction)
    elif few and volume:
        size = 0 if direction == "forward" or tf32 else copies(conv, direction)
    elif few and tf32 and direction != "forward":
        size = copies(conv, direction)
    elif few:
        size = _padded(conv.inputs, conv.channels, 16 // conv.itemsize) * conv.itemsize
        if max(conv.kernel) > 8:
            size += _padded(conv.weights, conv.channels, 8) * conv.itemsize
    if direction == "weight":
        size += _partial_sums(conv)
    return Workspace(size, sure=not few and not tf32)


def _side(conv: Convolution) -> float:
    """The side of an output, in elements: the mean of its dimensions."""
    return float((conv.outputs / (conv.batch * conv.features)) ** (1 / len(conv.kernel)))


def _fp32(conv: Convolution, direction: Direction) -> Workspace:
    """Strict fp32: on NCHW tensors mostly nothing, but Winograd's and Fourier's transforms for some."""
    copied = copies(conv, direction)
    few = conv.channels < 16
    size = 0
    if direction == "weight" and not few and not conv.pointwise:
        # Volumes, strides: an implicit product on copies. Winograd F(4 x 4, 3 x 3): 36 values for 16.
        size = copied
        plain = conv.kernel == (3, 3) and max(conv.stride) == 1 and not conv.transposed
        if plain and (conv.channels >= 96 or min(conv.channels, conv.features) >= 64):
            size = 9 * (conv.inputs + conv.outputs) + 16 * conv.weights
        elif len(conv.kernel) < 3 and (conv.transposed or conv.channels < 64 or plain):
            size = 0
    side = round(_side(conv))
    plain = conv.kernel == (3, 3) and max(conv.stride) == 1 and not conv.transposed
    if direction == "forward" and plain and (conv.channels, conv.features, side) in FOURIER:
        # Two spectra, each half of 8-byte complex values, for each channel of the weight and of the input.
        length = 1 << (side + 1).bit_length()
        size = 2 * length * (length // 2 + 1) * 8 * conv.channels * (conv.features + conv.batch) + 4 * conv.weights
    if direction == "input" and conv.kernel == (3, 3) and max(conv.stride) == 1 and not few and side >= 28:
        # Fourier transforms of 32 x 17 complex values: of the weight, and of two tiles an image at a time.
        size = 32 * 17 * 8 * (conv.channels * conv.features + 2 * conv.batch * (conv.channels + conv.features))
    if conv.channels_last and direction == "weight":
        size = size + copied if size and len(conv.kernel) < 3 else 0
    elif conv.channels_last and not (few and direction == "forward"):
        size += copied
    return Workspace(size, sure=len(conv.kernel) == 3)


def _grouped(conv: Convolution, direction: Direction) -> Workspace:
    """One group a channel: torch's own kernels, or cuDNN's without a workspace. Other groups were not measured."""
    if conv.groups == conv.channels:
        half = conv.arithmetic in ("bf16", "fp16")
        if conv.arithmetic == "fp16" and direction == "weight" and max(conv.kernel) <= 3 and not conv.channels_last:
            return Workspace(copies(conv, direction), sure=False)
        if conv.channels_last and direction == "weight" and half:
            return Workspace(8 * conv.batch * 4 * conv.weights, sure=False)
        if conv.channels_last and conv.arithmetic == "tf32" and direction == "weight" and max(conv.kernel) > 3:
            return Workspace(4 * copies(conv, direction) + _partial_sums(conv), sure=False)
        return Workspace(0, sure=not conv.channels_last)
    if conv.arithmetic == "fp32" or conv.channels_last:
        return Workspace(0, sure=False)
    return Workspace(copies(conv, direction), sure=False)
