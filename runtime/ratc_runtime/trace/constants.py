"""The values of tensors that depend on no data: made by factory functions, or computed from such tensors alone.

A model may ask whether its mask is all ones, or for the maximum of lengths that it made itself. Fake tensors have no
values, so those of small tensors are kept here, by storage, in host memory: a view shares the values of its base, and
an in-place operation changes both. Images, targets, weights and random numbers are unknown, and so are all results
computed from them. A known tensor that gets an unknown value is forgotten.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes

#: Elements of a tensor whose values are kept: a mask of 4 x 512 x 512.
ELEMENTS = 2**20
#: Elements, counted with repetitions, that are read to compute a result.
READ_ELEMENTS = 2**24
#: Bytes of all that is kept at once.
TOTAL_BYTES = 2**28
#: Phases in which values are followed. Tensors of the others are data, or the optimizer's.
PHASES = frozenset(("build", "forward", "loss", "backward"))
aten: Any = torch.ops.aten

_EMPTY = frozenset(
    (aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided, aten.empty_permuted)
)
# The result depends on a tensor's shape and type only.
_LIKE = frozenset((aten.zeros_like, aten.ones_like, aten.full_like))
_NEW = frozenset((aten.new_zeros, aten.new_ones, aten.new_full))
_OVERWRITING = frozenset((aten.fill_, aten.zero_, aten.copy_))
_INDEXING = frozenset((aten.index, aten.index_put, aten.index_put_))
# Written into, though their schemas do not say so.
_RUNNING = frozenset((aten.native_batch_norm, aten.cudnn_batch_norm, aten.miopen_batch_norm))


@dataclass(frozen=True)
class _Kind:
    """The properties of an operator's schema: written arguments, and whether its result needs values or is random."""

    writes: tuple[tuple[int, str], ...]  # position and name
    random: bool
    reads: bool


@functools.cache
def _kind(operator: Any) -> _Kind:
    writes = tuple(
        (place, argument.name)
        for place, argument in enumerate(operator._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    tags = set(operator.tags)
    return _Kind(
        writes,
        torch.Tag.nondeterministic_seeded in tags or operator.overloadpacket in _EMPTY,
        bool(tags & {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}),
    )


def _tensors(arguments: Any) -> Iterator[torch.Tensor]:
    for value in arguments:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


class Constants:
    """Follows known values through the operators that a mode sees."""

    def __init__(self, fake: FakeTensorMode) -> None:
        self.fake = fake
        # Address of a fake storage -> the real one, and a weak reference to the fake one.
        self._known: dict[int, tuple[torch.UntypedStorage, Any]] = {}
        self._bytes = 0

    def knows(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor's values are known: those of a fake tensor are if they are kept here, those of a real
        tensor always.
        """
        if not isinstance(tensor, FakeTensor):
            return not tensor.is_meta
        return tensor.untyped_storage()._cdata in self._known and not (tensor.is_conj() or tensor.is_neg())

    def value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return a real tensor with the values and the shape of a known one, on the same real storage; else None."""
        if not self.knows(tensor):
            return None
        if not isinstance(tensor, FakeTensor):
            return tensor
        storage = self._known[tensor.untyped_storage()._cdata][0]
        with _disable_current_modes():
            real = torch.empty(0, dtype=tensor.dtype)
            return real.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def forget(self, tensor: torch.Tensor) -> None:
        """Forget the values of a tensor and of all tensors that share its storage."""
        self._drop(tensor.untyped_storage()._cdata)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy the known values of `source` to the fake tensor `target` of the same shape, converted to its dtype."""
        value = self.value(source)
        if value is not None and target is not source and target.numel() <= ELEMENTS:
            with _disable_current_modes():
                value = value.to(target.dtype)
            self._keep(target, value)

    def _drop(self, address: int) -> None:
        entry = self._known.pop(address, None)
        if entry is not None:
            self._bytes -= entry[0].nbytes()

    def answer(self, operator: Any, args: Any, kwargs: Any) -> tuple[Any] | None:
        """Return the result (in a tuple) of an operator that needs values, if they are known; else None."""
        if not _kind(operator).reads:
            return None
        given = list(_tensors((args, kwargs.values())))
        if not any(isinstance(tensor, FakeTensor) for tensor in given) or not self._readable(given):
            return None
        real = self._run(operator, args, kwargs)
        return None if real is None else (self._as_fake(real[0]),)

    def indices(self, operator: Any, args: Any) -> Any:
        """Return an indexing operator's arguments with known masks as positions, whose number is then known."""
        if operator.overloadpacket not in _INDEXING:
            return args
        found: list[Any] = []
        for index in args[1]:
            mask = isinstance(index, FakeTensor) and index.dtype in (torch.bool, torch.uint8) and self.knows(index)
            if not mask:
                found.append(index)
                continue
            value = self.value(index)
            assert value is not None
            with _disable_current_modes():
                places = torch.nonzero(value, as_tuple=True)
            found += [self._as_fake(place) for place in places]
        return (args[0], found, *args[2:])

    def follow(self, operator: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Keep the known values of an operator's results, and forget tensors that it overwrote with unknown values.

        `args` are those before real tensors were converted to fake ones.
        """
        kind = _kind(operator)
        packet = operator.overloadpacket
        written = self._written(kind, args, kwargs)
        given = list(_tensors((args, kwargs.values())))
        if packet in _RUNNING:
            written = given
        if kind.random:
            self._forget(written)
            return
        if packet in _OVERWRITING and self._overwrite(operator, args, kwargs):
            return
        results = [tensor for tensor in _tensors((out,)) if isinstance(tensor, FakeTensor)]
        if packet in _LIKE or packet in _NEW:
            args = (self._dummy(args[0], packet in _LIKE), *args[1:]) if self._small(results) else None
        elif not self._readable(given) or not self._small(results):
            args = None
        real = None if args is None else self._run(operator, args, kwargs)
        if real is None:
            self._forget(written)
            return
        for fake, value in zip(_tensors((out,)), _tensors(real), strict=False):
            if isinstance(fake, FakeTensor) and fake.untyped_storage()._cdata not in self._known:
                self._keep(fake, value)

    def _written(self, kind: _Kind, args: Any, kwargs: Any) -> list[torch.Tensor]:
        found = [args[place] if place < len(args) else kwargs.get(name) for place, name in kind.writes]
        return list(_tensors(found))

    def _forget(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            if isinstance(tensor, FakeTensor):
                self.forget(tensor)

    def _readable(self, given: list[torch.Tensor]) -> bool:
        return all(self.knows(tensor) and tensor.numel() <= READ_ELEMENTS for tensor in given)

    @staticmethod
    def _small(results: list[FakeTensor]) -> bool:
        return bool(results) and all(
            tensor.numel() <= ELEMENTS and tensor.layout == torch.strided for tensor in results
        )

    def _dummy(self, tensor: torch.Tensor, shaped: bool) -> torch.Tensor:
        with _disable_current_modes():
            if shaped:
                return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
            return torch.empty(0, dtype=tensor.dtype)

    def _overwrite(self, operator: Any, args: Any, kwargs: Any) -> bool:
        """Learn a tensor's values again if its whole storage is overwritten with known ones."""
        target = args[0]
        if not isinstance(target, FakeTensor) or self.knows(target) or not self._readable(list(_tensors(args[1:]))):
            return False
        whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
        if not whole or target.numel() > ELEMENTS or target.layout != torch.strided:
            return False
        real = self._run(operator, (self._dummy(target, True), *args[1:]), kwargs)
        if real is not None:
            self._keep(target, real[0])
        return real is not None

    def _run(self, operator: Any, args: Any, kwargs: Any) -> tuple[Any] | None:
        """Run an operator on real tensors; None if it raises."""
        args = self._real(args)
        kwargs = {key: self._real(value) for key, value in kwargs.items()}
        try:
            with unset_fake_temporarily(), torch.no_grad():
                return (operator(*args, **kwargs),)
        except Exception:  # the fake operator has succeeded, or its error is the one that counts
            return None

    def _real(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._real(item) for item in value)
        return self.value(value) if isinstance(value, FakeTensor) else value

    def _keep(self, fake: torch.Tensor, value: torch.Tensor) -> None:
        storage = fake.untyped_storage()
        size = storage.nbytes()
        if not size or size > 16 * ELEMENTS or self._bytes + size > TOTAL_BYTES:
            return
        if value.dtype != fake.dtype or value.shape != fake.shape:
            return
        with _disable_current_modes():
            # A separate storage with the fake one's layout: a result may share an argument's.
            own = torch.empty(size, dtype=torch.uint8).untyped_storage()
            target = torch.empty(0, dtype=fake.dtype)
            target.set_(own, fake.storage_offset(), fake.shape, fake.stride())
            target.copy_(value)
        address = storage._cdata
        self._known[address] = (own, weakref.ref(storage, lambda _: self._drop(address)))
        self._bytes += size

    def _as_fake(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._as_fake(item) for item in value)
        if not isinstance(value, torch.Tensor):
            return value
        fake = self.fake.from_tensor(value, static_shapes=True)
        self._keep(fake, value)
        return fake
