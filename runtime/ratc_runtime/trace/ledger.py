"""The ledger of storages: times of allocation and free, phase, module and kind."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field

import torch

from ratc_runtime.trace.scratch import Scratch

PHASES = ("build", "input", "forward", "loss", "backward", "clip", "optimizer", "zero_grad")
KINDS = ("parameter", "buffer", "gradient", "optimizer", "input", "activation", "temporary", "workspace")


@dataclass
class Block:
    """One storage. `size` is in bytes, as the tensor requests them, before any rounding."""

    size: int
    phase: str
    module: str
    step: int
    kind: str = ""
    freed: tuple[int, str] | None = None  # step and phase; None while alive
    sees_backward: bool = False
    scratch: Scratch | None = None  # its size follows from this instead
    optional: bool = False  # a step runs with half of it, too
    shape: tuple[int, ...] = ()  # bytes of an element, then the tensor's shape; empty if its size is another


@dataclass
class Ledger:
    """Events in order: (block, True) allocates, (block, False) frees."""

    blocks: list[Block] = field(default_factory=list)
    events: list[tuple[int, bool]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    phase: str = "build"
    step: int = -1
    _live: dict[int, int] = field(default_factory=dict)  # address of a storage -> its block
    _watch: dict[int, weakref.ref[torch.UntypedStorage]] = field(default_factory=dict)

    def start_step(self) -> None:
        """Begin the next optimizer step."""
        self.step += 1
        self.steps.append(len(self.events))

    def start_phase(self, phase: str) -> str:
        """Enter a phase; return the previous one. Backward marks the blocks that are alive at its start."""
        before, self.phase = self.phase, phase
        if phase == "backward":
            for number in self._watch:
                self.blocks[number].sees_backward = True
        return before

    def add(self, tensor: torch.Tensor, module: str, kind: str = "") -> int:
        """Record the storage of a tensor, of any shape, that an operator returned; return the number of its block.

        A known storage keeps its block.
        A storage that was resized counts as freed and allocated again.
        """
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        known = self._live.get(address)
        if known is not None:
            if self.blocks[known].size == size:
                return known
            self._free(known, address)
        number = self.allocate(size, module, kind)
        shape = tensor.element_size(), *tensor.shape
        if math.prod(shape) == size:
            self.blocks[number].shape = shape
        self._live[address] = number
        # The finalizer runs when the last tensor, view or graph node that holds the storage lets go of it.
        self._watch[number] = weakref.ref(storage, lambda _: self._free(number, address))
        return number

    def block_of(self, tensor: torch.Tensor) -> int | None:
        """Return the number of the block of a tensor's storage; None if it is not followed."""
        return self._live.get(tensor.untyped_storage()._cdata)

    def move(self, old: torch.UntypedStorage, new: torch.UntypedStorage) -> None:
        """Replace an old storage by a new one in its block, for an operator that would have worked in place."""
        number = self._live.pop(old._cdata, None)
        if number is None:
            return
        address = new._cdata
        self._live[address] = number
        self._watch[number] = weakref.ref(new, lambda _: self._free(number, address))

    def allocate(
        self, size: int, module: str, kind: str = "", scratch: Scratch | None = None, optional: bool = False
    ) -> int:
        """Record an allocation of `size` bytes without a tensor (a workspace); return the number of its block, for
        `release`.
        """
        number = len(self.blocks)
        self.blocks.append(Block(size, self.phase, module, self.step, kind, scratch=scratch, optional=optional))
        self.events.append((number, True))
        return number

    def release(self, number: int) -> None:
        """Record that the block with this number is freed."""
        self.blocks[number].freed = (self.step, self.phase)
        self.events.append((number, False))

    def mark(self, tensor: torch.Tensor, kind: str, module: str | None = None) -> None:
        """Set the kind, and optionally the module, of a tensor's block."""
        number = self._live.get(tensor.untyped_storage()._cdata)
        if number is not None:
            self.blocks[number].kind = kind
            if module is not None:
                self.blocks[number].module = module

    def _free(self, number: int, address: int) -> None:
        if self._live.get(address) == number:
            del self._live[address]
        if self._watch.pop(number, None) is not None:
            self.release(number)

    def close(self) -> None:
        """Stop following. Live blocks stay alive in the record, instead of being freed at the process's end."""
        self._watch.clear()
        self._live.clear()

    def kind_of(self, block: Block) -> str:
        """Return a block's kind: the marked one, else the one that follows from its lifetime."""
        if block.kind:
            return block.kind
        if block.phase == "input":
            return "input"
        if block.sees_backward or (block.phase in ("forward", "loss") and block.freed != (block.step, block.phase)):
            return "activation"
        return "temporary"
