"""The work of a step's kernels: floating-point operations and bytes moved, by operator and type of the computation.

A kernel is noted as (operator, type, regular, phase, launches, operations, bytes). Operations are those of
`torch.utils.flop_counter`, two for each multiplication with its addition; operators that it does not know have none,
since their time is that of their bytes. Bytes are those of the tensors that a kernel reads and writes, each once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from ratc_runtime.trace import convolutions

aten: Any = torch.ops.aten

TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
#: Names of the types of computations: a product of fp32 tensors on tensor cores is `tf32`.
NAMES = (*TYPES.values(), "tf32", "other")

#: Operators that make a tensor without a kernel, beside views.
_NO_KERNEL = frozenset(
    (
        aten.empty.memory_format,
        aten.empty_strided.default,
        aten.empty_like.default,
        aten.new_empty.default,
        aten.new_empty_strided.default,
        aten._unsafe_view.default,
        aten._reshape_alias.default,
        aten.lift_fresh.default,
        aten.set_.source_Tensor,
    )
)
#: Operators that write their first argument and do not read it.
_OVERWRITES = frozenset((aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.bernoulli_))
#: Operators that read as much as they write, not all of their first argument.
_LOOKUPS = frozenset((aten.embedding, aten.index, aten.index_select, aten.gather, aten.nll_loss_forward))


class Kernel(NamedTuple):
    """A kernel, or `launches` of them that share the work evenly. `operations` are floating-point operations, and
    `bytes_` the bytes read and written, of all launches together.

    It is `regular` if threads read neighbouring bytes together: the tensors of an elementwise kernel lie in memory in
    the same order, the rows of a product's matrices begin at multiples of 16 bytes, and the image of a convolution has
    its channels last, as cuDNN's kernels for tensor cores want it.
    """

    operator: str
    type: str
    regular: bool
    phase: str
    launches: int
    operations: int
    bytes_: int


class _Nature(NamedTuple):
    """The properties of an operator that its arguments do not change."""

    name: str
    counted_by: Callable[..., Any] | None  # its floating-point operations
    overwrites: bool
    looks_up: bool
    written: tuple[int, ...]  # places of the arguments that it changes
    causal: int | None  # place of the argument that leaves out half of an attention


class Work:
    """The kernels of one step, in order."""

    def __init__(self, tf32: bool) -> None:
        self.kernels: list[Kernel] = []
        self._tf32 = tf32
        self._natures: dict[Any, _Nature | None] = {}

    def add(self, func: Any, args: Any, given: Iterable[torch.Tensor], out: Any, phase: str, rounds: int = 1) -> None:
        """Record an operator that was called ``rounds`` times with tensors of these shapes.

        ``given`` are the tensors among its arguments, ``out`` is its result.
        """
        try:
            nature = self._natures[func]
        except KeyError:
            nature = self._natures[func] = _properties(func)
        if nature is None:
            return
        written = [args[place] for place in nature.written if place < len(args)] or (out,)
        made = sum(map(moved, tensors_in(written)))
        given = list(given)
        read = 0 if nature.overwrites else sum(map(moved, given))
        if nature.overwrites and len(given) > 1:
            read = sum(map(moved, given[1:]))
        elif nature.looks_up:
            read = made
        operations = int(nature.counted_by(*args, out_val=out)) if nature.counted_by else 0
        if nature.causal is not None and len(args) > nature.causal and args[nature.causal]:
            operations //= 2
        kind = self.type_of(given[0].dtype if given else None, bool(nature.counted_by))
        if func in convolutions.OPERATORS:
            regular = convolutions.is_channels_last(func, args)
        else:
            regular = aligned(given) if nature.counted_by else ordered([*given, *tensors_in((out,))])
        size = (read + made) * rounds
        self.kernels.append(Kernel(nature.name, kind, regular, phase, rounds, operations * rounds, size))

    def note(self, call: Library, phase: str) -> None:
        """Record a call of a library."""
        made = sum(map(moved, tensors_in(call.tensors)))
        kind = self.type_of(call.dtype, True)
        self.kernels.append(Kernel(call.name, kind, True, phase, call.launches, call.operations, made))

    def type_of(self, dtype: torch.dtype | None, product: bool) -> str:
        """Return the type of a computation on tensors of a dtype, as docs/reference/trace.md has it: "tf32" for a
        product of float32 if TF32 is allowed.
        """
        name = TYPES.get(dtype, "other") if dtype is not None else "other"
        return "tf32" if name == "fp32" and product and self._tf32 else name


def moved(tensor: torch.Tensor) -> int:
    """Return the bytes of the elements of a tensor of any shape; those of an expanded dimension count once."""
    size = tensor.element_size()
    if 0 in tensor.stride():
        for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
            size *= length if stride else 1
        return int(size)
    return int(tensor.numel() * size)


def aligned(matrices: Iterable[torch.Tensor]) -> bool:
    """Return whether the rows of all matrices begin at multiples of 16 bytes, as tensor cores read them."""
    return not any(
        stride * matrix.element_size() % 16
        for matrix in matrices
        if matrix.dim() > 1
        for length, stride in zip(matrix.shape, matrix.stride(), strict=True)
        if stride > 1 and length > 1
    )


def ordered(tensors: list[torch.Tensor]) -> bool:
    """Return whether the tensors of the largest shape lie in memory in the same order of dimensions."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    most = max(tensor.numel() for tensor in tensors)
    large = [tensor for tensor in tensors if tensor.numel() == most and 0 not in tensor.stride()]
    orders = {tuple(sorted(range(len(one)), key=one.__getitem__)) for one in map(_strides, large)}
    return len(orders) < 2


def _strides(tensor: torch.Tensor) -> list[int]:
    """Return the strides of the dimensions that are longer than 1."""
    return [stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if length > 1]


def tensors_in(arguments: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors, of any shape, among an operator's arguments or results, also in nested lists and tuples."""
    for value in arguments:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


class Library(NamedTuple):
    """A call of a library that is one operator in the trace. `operations` are its floating-point operations in all
    `launches`; `tensors` are those that it reads and writes.
    """

    name: str
    dtype: torch.dtype
    launches: int
    operations: int
    tensors: tuple[Any, ...]


_listener: Callable[[Library], None] | None = None


def listen(listener: Callable[[Library], None]) -> None:
    """Call a function for every call of a library from now on, in this process."""
    global _listener
    _listener = listener


def library(name: str, dtype: torch.dtype, launches: int, operations: int, *tensors: Any) -> None:
    """Report a call of a library's function in the traced step; arguments as in `Library`."""
    if _listener is not None:
        _listener(Library(name, dtype, launches, operations, tensors))


def _properties(func: Any) -> _Nature | None:
    """Return the properties of an operator; None if it launches no kernel."""
    from torch.utils.flop_counter import flop_registry

    if func.namespace == "prim" or getattr(func, "is_view", False) or func in _NO_KERNEL:
        return None
    packet = func.overloadpacket
    arguments = func._schema.arguments
    written = tuple(place for place, one in enumerate(arguments) if one.alias_info and one.alias_info.is_write)
    overwrites, looks_up = packet in _OVERWRITES, packet in _LOOKUPS
    causal = next((place for place, one in enumerate(arguments) if one.name == "is_causal"), None)
    return _Nature(packet.__name__, flop_registry.get(packet), overwrites, looks_up, written, causal)
