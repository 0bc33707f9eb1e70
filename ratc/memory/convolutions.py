"""The workspaces of cuDNN's convolutions: bytes that a kernel takes while it runs, beside its input and output.

cuDNN chooses an engine by heuristics that are not published. Measurements come first: ratc/facts/convolutions.json
holds the passes of surveys and of recorded steps (`benchmarks/memory/workspaces.py --write` makes it from the committed
data), and a pass like these takes the bytes of the one of the nearest size. For the others there are rules, read off
1,696 convolutions on an H200 with cuDNN 9.19. In short: kernels for 16-bit types and TF32 work on NHWC tensors, and
strict fp32 on NCHW ones, so that a tensor in the other layout is copied: input, weight and output each once.
`benchmarks/memory/workspaces.py` and `recorded.py` print how well that holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from ratc import resources

Direction = Literal["forward", "input", "weight"]
Arithmetic = Literal["bf16", "fp16", "tf32", "fp32"]
#: In the order of their numbers in a trace.
DIRECTIONS: tuple[Direction, ...] = ("forward", "input", "weight")
ARITHMETICS: tuple[Arithmetic, ...] = ("bf16", "fp16", "tf32", "fp32")

#: Bytes added to every workspace that is not 0: a kernel takes that many beside its copies, at most. Read off the same
#: measurements. The allocator rounds sizes up to 512 bytes, so they add one such unit at most.
BESIDE = 147
#: Bytes of partial sums, at most, of an fp16 convolution with fewer than 8 input channels (a first layer). Read off the
#: same measurements.
FEW = 512 << 10


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution. `batch`, `channels` (input) and `features` (output) are counts; `inputs` and `outputs` are the
    elements of the whole input and output tensors; `kernel` and `stride` have one number for each dimension.
    """

    arithmetic: Arithmetic
    channels_last: bool
    transposed: bool
    batch: int
    channels: int
    features: int
    groups: int
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 2 if self.arithmetic in ("bf16", "fp16") else 4

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is one element."""
        return math.prod(self.kernel) == 1

    @property
    def aligned(self) -> bool:
        """Whether each channel of the output begins at a multiple of 16 bytes."""
        return (self.outputs // max(1, self.batch * self.features)) * self.itemsize % 16 == 0

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.channels * self.features // self.groups * math.prod(self.kernel)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the weight's gradient as a matrix."""
        rows, rest = (self.channels, self.features) if self.transposed else (self.features, self.channels)
        return rows, rest * math.prod(self.kernel)

    @property
    def positions(self) -> int:
        """Positions of the kernel in all images: the number of terms in the sums of the weight's gradient."""
        if self.transposed:
            return self.inputs // self.channels
        return self.outputs // self.features


def described(numbers: Sequence[int]) -> tuple[Convolution, Direction]:
    """Return the convolution and the pass for the numbers in a trace, in the order of docs/reference/trace.md.

    Raises ValueError if the numbers describe no convolution.
    """
    direction, arithmetic, last, transposed, batch, channels, features, groups, inputs, outputs, *rest = numbers
    half = len(rest) // 2
    if not rest or len(rest) % 2 or min(channels, features, groups, *rest) < 1 or min(direction, arithmetic) < 0:
        raise ValueError(f"no convolution: {list(numbers)}")
    try:
        kind, towards = ARITHMETICS[arithmetic], DIRECTIONS[direction]
    except IndexError:
        raise ValueError(f"no convolution: {list(numbers)}") from None
    sizes = batch, channels, features, groups, inputs, outputs
    return Convolution(kind, bool(last), bool(transposed), *sizes, tuple(rest[:half]), tuple(rest[half:])), towards


class Point(NamedTuple):
    """A measured pass: its `Convolution.positions`, the copied tensors (letters of "iow": input, output, weight), and
    the bytes beside the copies.

    ``copies`` is None if no set of copies explains the measured bytes. The rules then give the size.
    """

    positions: int
    copies: str | None
    beside: int


#: The common properties of passes of one kind; their key in convolutions.json.
Signature = tuple[str, str, bool, bool, bool, int, int, int, tuple[int, ...], tuple[int, ...]]


def signature(conv: Convolution, direction: Direction) -> Signature:
    """Return the key under which measured passes of this kind are found."""
    sizes = conv.channels, conv.features, conv.groups
    form = conv.channels_last, conv.transposed, conv.aligned
    return direction, conv.arithmetic, *form, *sizes, conv.kernel, conv.stride


@dataclass(frozen=True, slots=True)
class Measured:
    """The content of convolutions.json: passes by signature, each as the values of a `Point`, and partial sums by kind
    ("half", "tf32") and matrix, each as (positions, bytes).
    """

    passes: Mapping[Signature, Sequence[Sequence[Any]]]
    sums: Mapping[tuple[str, int, int], tuple[tuple[int, int], ...]]


@lru_cache(maxsize=1)
def measured() -> Measured:
    """Read convolutions.json."""
    return parsed(json.loads(resources.read("facts", "convolutions.json")))


def parsed(content: dict[str, list[list[list[list[int]]]]]) -> Measured:
    """Return the content of convolutions.json as it is looked up."""
    passes: dict[Signature, list[list[int]]] = {}
    for (*rest, kernel, stride), points in content["passes"]:
        key: Signature = (*rest, tuple(kernel), tuple(stride))  # type: ignore[assignment]  # eight of JSON
        passes[key] = points
    sums = {tuple(key): tuple((at, size) for at, size in points) for key, points in content["sums"]}
    return Measured(passes, sums)  # type: ignore[arg-type]  # JSON has no tuples


def workspace(conv: Convolution, direction: Direction, processors: int = 132, known: Measured | None = None) -> int:
    """Return the bytes of a pass's workspace on a card with ``processors`` multiprocessors (132: H100 and H200).

    ``known`` replaces the content of convolutions.json.
    """
    known = measured() if known is None else known
    points = known.passes.get(signature(conv, direction))
    if points and conv.positions:
        nearest = min(map(Point._make, points), key=lambda point: abs(math.log(point.positions / conv.positions)))
        if nearest.copies is not None:
            beside: float = nearest.beside
            if beside > partial_sum_bytes(conv, processors):
                beside *= conv.positions / nearest.positions
            return sum(copied(conv, direction)[tensor] for tensor in nearest.copies) + round(beside)
    size = rule(conv, direction, processors, known)
    return size + BESIDE if size else 0


def unmeasured(passes: Iterable[tuple[Convolution, Direction]], known: Measured | None = None) -> int:
    """Return the largest workspace, in bytes, of the passes without a similar measurement."""
    known = measured() if known is None else known
    strange = (one for one in passes if signature(*one) not in known.passes)
    return max((workspace(*one, known=known) for one in strange), default=0)


def partial_sum_bytes(conv: Convolution, processors: int) -> int:
    """Return the bytes of one partial sum of the weight's gradient per multiprocessor; more grows with the batch."""
    return 4 * conv.weights * processors


def rule(conv: Convolution, direction: Direction, processors: int, known: Measured) -> int:
    """Return the bytes of the workspace of a pass without a similar measurement, by the rules of this module."""
    if conv.groups > 1:
        return _grouped(conv, direction, processors, known)
    if conv.arithmetic == "fp32":
        return _fp32(conv, direction)
    if conv.channels_last:
        return _native_layout(conv, direction, processors, known)
    return _copied(conv, direction, processors, known)


def _padded(count: int, channels: int, multiple: int) -> int:
    """Return the elements of a tensor with its channels padded to a multiple, as tensor cores need them."""
    return count // channels * -(-channels // multiple) * multiple


def copied(conv: Convolution, direction: Direction) -> dict[str, int]:
    """Return the bytes of copies of input (i), output (o) and weight (w), channels padded; a 1 x 1 weight has none."""
    multiple = 1 if conv.itemsize == 4 else 8 if conv.arithmetic == "bf16" or direction == "input" else 4
    weight = 0
    if not conv.pointwise:
        weight = _padded(_padded(conv.weights, conv.channels, multiple), conv.features, multiple)
    return {
        "i": _padded(conv.inputs, conv.channels, multiple) * conv.itemsize,
        "o": _padded(conv.outputs, conv.features, multiple) * conv.itemsize,
        "w": weight * conv.itemsize,
    }


def copies(conv: Convolution, direction: Direction) -> int:
    """Return the bytes of the copies of input, weight and output together."""
    return sum(copied(conv, direction).values())


def partial_sums(conv: Convolution, processors: int, known: Measured) -> int:
    """Return the bytes of the partial sums of the weight's gradient: enough parts to keep every multiprocessor busy.

    If a gradient of this shape was measured, these are the bytes at the nearest number of positions. For other shapes
    a formula read off the same measurements holds. Its tiles of fp32 values grow with the gradient: 64 x 64, 128 x 64,
    128 x 128, and 128 x 256 for 16-bit types.
    """
    rows, columns = conv.matrix
    half = conv.itemsize == 2
    if conv.arithmetic == "fp16" and conv.channels < 8:
        return FEW
    points = known.sums.get(("half" if half else "tf32", rows, columns))
    if points and conv.positions:
        return min(points, key=lambda point: abs(math.log(point[0] / conv.positions)))[1]
    high, wide = (64, 64) if rows <= 64 else (128, 64 if columns < 1024 else 128)
    if half and rows >= 256:
        return 4 * high * min(256, columns) * processors
    tiles = -(-rows // high) * -(-columns // wide)
    parts = processors // tiles
    if half:
        return 4 * high * wide * tiles * max(0, parts - 1)  # the first part is the result itself
    return 4 * high * wide * (tiles * parts if parts > 1 else processors)


def _copied(conv: Convolution, direction: Direction, processors: int, known: Measured) -> int:
    """16-bit types and TF32 on NCHW tensors."""
    strided = max(conv.stride) > 1
    if conv.pointwise and not strided:
        if conv.aligned and direction != "weight":
            return 0
        if conv.aligned and len(conv.kernel) < 3:
            return conv.batch * 4 * conv.weights  # a product a sample, summed afterwards
        if conv.aligned:
            return 2 * copies(conv, direction)
    few = conv.channels * conv.itemsize < 16
    first = few and direction == "forward" and max(conv.kernel) <= 3 and conv.features <= 32
    if first and (conv.arithmetic != "fp16" or len(conv.kernel) < 3):
        return 0  # a kernel for first layers
    if few and conv.arithmetic == "tf32" and direction != "weight":
        large = direction == "forward" and max(conv.kernel) > 4
        return copies(conv, direction) if large else 0
    size = copies(conv, direction)
    if direction == "weight":
        size += partial_sums(conv, processors, known)
    return size


def _native_layout(conv: Convolution, direction: Direction, processors: int, known: Measured) -> int:
    """16-bit types and TF32 on NHWC tensors: channels are padded to 16 bytes, partial sums are kept."""
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
        size += partial_sums(conv, processors, known)
    return size


def _side(conv: Convolution) -> float:
    """The side of an output, in elements: the mean of its dimensions."""
    return float((conv.outputs / max(1, conv.batch * conv.features)) ** (1 / len(conv.kernel)))


def _fp32(conv: Convolution, direction: Direction) -> int:
    """Strict fp32: on NCHW tensors mostly nothing, but Winograd's and Fourier's transforms for some.

    Of 3 x 3 kernels in forward a few take whole Fourier transforms at large batches; no rule was found for when.
    """
    whole = copies(conv, direction)
    few = conv.channels < 16
    size = 0
    plain = conv.kernel == (3, 3) and max(conv.stride) == 1 and not conv.transposed
    if direction == "weight" and not few and not conv.pointwise:
        # Volumes, strides: an implicit product on copies. Winograd F(4 x 4, 3 x 3): 36 values for 16.
        size = whole
        if plain and (conv.channels >= 96 or min(conv.channels, conv.features) >= 64):
            size = 9 * (conv.inputs + conv.outputs) + 16 * conv.weights
        elif len(conv.kernel) < 3 and (conv.transposed or conv.channels < 64 or plain):
            size = 0
    side = round(_side(conv))
    if direction == "input" and conv.kernel == (3, 3) and max(conv.stride) == 1 and not few and side >= 28:
        # Fourier transforms of 32 x 17 complex values: of the weight, and of two tiles an image at a time.
        size = 32 * 17 * 8 * (conv.channels * conv.features + 2 * conv.batch * (conv.channels + conv.features))
    if conv.channels_last and direction == "weight":
        size = size + whole if size and len(conv.kernel) < 3 else 0
    elif conv.channels_last and not (few and direction == "forward"):
        size += whole
    return size


def _grouped(conv: Convolution, direction: Direction, processors: int, known: Measured) -> int:
    """One group a channel: torch's own kernels, or cuDNN's without a workspace. Few of other groups were measured."""
    if conv.groups == conv.channels:
        half = conv.arithmetic in ("bf16", "fp16")
        if conv.arithmetic == "fp16" and direction == "weight" and max(conv.kernel) <= 3 and not conv.channels_last:
            return copies(conv, direction)
        if conv.channels_last and direction == "weight" and half:
            return 8 * conv.batch * 4 * conv.weights
        if conv.channels_last and conv.arithmetic == "tf32" and direction == "weight" and max(conv.kernel) > 3:
            return 4 * copies(conv, direction) + partial_sums(conv, processors, known)
        return 0
    if conv.arithmetic == "fp32" or conv.channels_last:
        return 0
    return copies(conv, direction)
