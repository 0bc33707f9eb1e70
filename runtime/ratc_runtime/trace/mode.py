"""The mode that runs every operator on fake tensors and records the storages of its results.

It is above the fake mode. Operators on small host tensors (`torch.tensor(dims)`, ranges made without a device) are
computed for real, so that code which reads their values can be followed.
"""

from __future__ import annotations

import math
import sys
from types import FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ratc_runtime.models.chunked_maps import rounds
from ratc_runtime.trace import attention, convolutions, kernels, scratch
from ratc_runtime.trace.blocks import Spans
from ratc_runtime.trace.constants import PHASES, Constants
from ratc_runtime.trace.ledger import Ledger
from ratc_runtime.trace.owners import Owners
from ratc_runtime.trace.work import Library, Work, tensors_in

#: Traced steps: the optimizer's state exists from the second one on, whose kernels are those of all later ones.
STEPS = 2
# Elements up to which a host tensor is computed for real: positions and shapes, not data.
REAL_ELEMENTS = 65536
aten: Any = torch.ops.aten
#: References to a gradient that only autograd's buffer holds, as counted while an operator is called on it.
HELD = 4
_BY_SHAPE = frozenset((aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.expand, aten.repeat))
_RANGES = frozenset((torch.arange, torch.linspace, torch.logspace))
_EXPORTS = frozenset((torch.Tensor.tolist, torch.Tensor.numpy))


class HostRanges(TorchFunctionMode):
    """Detects a range made without a device, on the host: below Python every factory has one. Converts known values.

    Only for ranges: their values are read (rates of layers, positions), and their sizes seldom follow the batch. Known
    values of fake tensors become Python's or numpy's here.
    """

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        self.making = False
        self.constants = constants

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _EXPORTS and isinstance(args[0], FakeTensor):  # below Python fake tensors are refused
            known = self.constants.value(args[0])
            if known is not None:
                with unset_fake_temporarily():
                    return func(known.clone(), *args[1:], **kwargs)
        if func not in _RANGES or kwargs.get("device") is not None:
            return func(*args, **kwargs)
        self.making = True
        try:
            return func(*args, **kwargs)
        finally:
            self.making = False


def _small_result(operator: Any, args: tuple[Any, ...]) -> bool:
    """Return whether a factory makes a small tensor, by its numeric arguments."""
    if operator.overloadpacket not in _BY_SHAPE:
        return True
    for value in args:
        if isinstance(value, (list, tuple)):
            return math.prod(abs(int(n)) for n in value) <= REAL_ELEMENTS
    return True


def _small_range(args: tuple[Any, ...]) -> bool:
    return all(abs(value) <= REAL_ELEMENTS for value in args if isinstance(value, (int, float)))


def _caller(frame: FrameType | None) -> tuple[str, str]:
    """Return file and function of the Python code that made a dispatched call, without torch's wrappers and this
    module's `__torch_function__`.
    """
    between = "eval_frame.py", "_compile.py", "_ops.py", __file__
    while frame is not None and frame.f_code.co_filename.endswith(between):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_code.co_name) if frame is not None else ("", "")


class RecordingMode(TorchDispatchMode):
    """Records storages in a ledger. With `capability` None the CPU's own semantics stay unchanged.

    `workspace` is the size of a workspace of cuBLAS in bytes; None for torch's default on the card.
    """

    def __init__(
        self,
        fake: FakeTensorMode,
        ledger: Ledger,
        owners: Owners,
        capability: tuple[int, int] | None,
        tf32: bool = False,
        workspace: int | None = None,
    ) -> None:
        super().__init__()
        self.tf32 = tf32 and capability is not None and capability >= (8, 0)
        self.fake, self.ledger, self.owners, self.capability = fake, ledger, owners, capability
        self.constants = Constants(fake)
        self.ranges = HostRanges(self.constants)
        self.recording = False
        self.work = Work(self.tf32)
        self.spans = Spans(ledger, self.work)
        self.estimates: set[str] = set()
        if workspace is None and capability is not None:
            workspace = kernels.workspace_bytes(capability)
        self._workspace = workspace or 0
        self._workspaces: set[bool] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs.values())))
        if self.ledger.phase == "backward":
            self.spans.running()
        if self._on_host(func, given, args, kwargs):
            with unset_fake_temporarily():
                out = func(*args, **kwargs)
            if self.recording and self.capability is None:
                self._note(out)
            return out
        if func is aten._local_scalar_dense.default and self.ledger.phase == "optimizer":
            return 1  # Adafactor reads norms; no value of an update affects its memory
        answer = self.constants.answer(func, args, kwargs)
        if answer is not None:
            if self.recording:
                self._note(answer[0])
            return answer[0]
        before = args = self.constants.indices(func, args)
        named = kwargs
        if any(not isinstance(tensor, FakeTensor) for tensor in given):
            args = self._to_device(args)
            kwargs = {key: self._to_device(value) for key, value in kwargs.items()}
        cuda = self.recording and self.capability is not None
        grown = cuda and self._in_place(func, args)
        copied = kernels.copied_bytes(func, args) if cuda else 0
        copy = self.ledger.allocate(copied, self.owners.current()) if copied else None
        out = func(*args, **kwargs)
        if self.capability is not None:
            out = kernels.widen_statistics(func, out)
        if self.ledger.phase in PHASES:
            self.constants.follow(func, before, named, out)
        if grown and out.shape == args[0].shape and out.dtype == args[0].dtype:
            self.ledger.move(args[0].untyped_storage(), out.untyped_storage())
        elif cuda and func in convolutions.OPERATORS:
            self._convolve(func, args, out)
        elif self.recording:
            # Dropout makes its mask before its output (cuda/Dropout.cu).
            self._note(out[::-1] if cuda and func is aten.native_dropout.default else out)
        if cuda:
            self._work(func, args)
            self._scratch(func, args)
            if self.ledger.step == STEPS - 1:
                self.work.add(func, before, given, out, self.ledger.phase, rounds())
        if copy is not None:
            self.ledger.release(copy)
        return out

    def library(self, call: Library) -> None:
        """Note a call of a library. Its allocations are followed by themselves."""
        if self.recording and self.capability is not None and self.ledger.step == STEPS - 1:
            self.work.note(call, self.ledger.phase)

    def call(self, func: Any, args: Any, out: Any) -> None:
        """Note a kernel that a compiled graph calls, with results that were not noted yet."""
        if func in convolutions.OPERATORS:
            self._convolve(func, args, out)
        else:
            self._note(out)
        self._work(func, args)
        self._scratch(func, args)
        if self.ledger.step == STEPS - 1:
            self.work.add(func, args, tensors_in(args), out, self.ledger.phase)

    @staticmethod
    def _in_place(func: Any, args: Any) -> bool:
        """Return whether torch would make this sum in place if its tensors were real.

        Autograd adds a second gradient in place if nothing else holds the first (`can_accumulate_inplace` in
        torch/csrc/autograd/input_buffer.cpp). The call then comes directly from the engine; only its buffer and this
        call hold the tensor, and only the tensor and Python the storage. `linear` adds its bias to a product
        (aten/src/ATen/native/Linear.cpp), with autocast's rule or the module as its caller.
        """
        if func is not aten.add.Tensor:
            return False
        file, function = _caller(sys._getframe(2))
        first: torch.Tensor = args[0]
        if file.endswith(("autocast.py", "linear.py")):
            return isinstance(args[1], torch.Tensor) and args[1].dim() == 1 < first.dim()
        if function != "_engine_run_backward":
            return False
        storage = first.untyped_storage()
        spans = sum((size - 1) * stride for size, stride in zip(first.shape, first.stride(), strict=True)) + 1
        dense = spans == first.numel()
        held = first._use_count()  # type: ignore[attr-defined]  # torch's types do not know it
        return dense and held <= HELD and torch._C._storage_Use_Count(storage._cdata) <= 2

    def _convolve(self, func: Any, args: Any, out: Any) -> None:
        """Record a convolution's results, each followed by its workspace."""
        owner = self.owners.current()
        copied: list[int] = []
        self.estimates.add("convolutions")
        for one in convolutions.passes(func, args, out, self.tf32):
            copied += [self.ledger.allocate(size, owner) for size in one.copies]
            self.ledger.add(one.result, owner)
            if one.workspace is not None:
                self.ledger.release(self.ledger.allocate(0, owner, "workspace", one.workspace, optional=True))
        for block in copied:
            self.ledger.release(block)

    def _work(self, func: Any, args: Any) -> None:
        """Record a CUDA kernel's own memory that exists beside its result."""
        size = kernels.working_bytes(func, args) if self.capability is not None else 0
        if size:
            self.ledger.release(self.ledger.allocate(size, self.owners.current()))

    def to_fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the fake tensor for a real one, with the same shape."""
        return self.fake.from_tensor(tensor, static_shapes=True)

    def _on_host(self, func: Any, given: list[torch.Tensor], args: Any, kwargs: Any) -> bool:
        if not given:
            return self.ranges.making and _small_range(args)
        return all(
            not isinstance(tensor, FakeTensor) and not tensor.is_meta and tensor.numel() <= REAL_ELEMENTS
            for tensor in given
        ) and _small_result(func, args)

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._to_device(item) for item in value)
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        fake = self.to_fake(value)
        # A number lies in the arguments of a CUDA kernel; anything else was copied to the card.
        if self.recording and self.capability is not None and value.dim() > 0:
            self.ledger.add(fake, self.owners.current())
        return fake

    def _scratch(self, func: Any, args: Any) -> None:
        """Record a CUDA kernel's own allocations after its results, which are freed at its end."""
        if func in kernels.PRODUCTS:
            # A workspace belongs to a cuBLAS handle, a handle to a thread, and backward has a thread of its own.
            backward = torch._C._current_autograd_node() is not None
            if self._workspace and backward not in self._workspaces:
                self._workspaces.add(backward)
                self.ledger.allocate(self._workspace, "", "workspace")
            return
        sizes = attention.backward_scratch(func, args)
        uneven = scratch.described(func, args)
        if not sizes and uneven is None:
            return
        owner = self.owners.current()
        blocks = [self.ledger.allocate(size, owner, "workspace") for size in sizes]
        if uneven is not None:
            blocks.append(self.ledger.allocate(0, owner, "workspace", uneven))
        for block in reversed(blocks):
            self.ledger.release(block)

    def _note(self, out: Any) -> None:
        owner: str | None = None
        for tensor in tensors_in((out,)):
            if tensor.untyped_storage().nbytes():
                if owner is None:
                    owner = self.owners.current()
                self.ledger.add(tensor, owner)
