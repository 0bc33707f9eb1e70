"""One batch size's events: the model built on fake tensors, two steps run, every storage followed."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from ratc_runtime.engine import AUTOCAST, units
from ratc_runtime.engine.groups import group_numbers
from ratc_runtime.models import fused_maps, recompute
from ratc_runtime.models.build import build_model
from ratc_runtime.models.chunked_maps import only_enough_for_memory
from ratc_runtime.tasks import make_task
from ratc_runtime.tasks.base import Task
from ratc_runtime.trace import compiled, flex, kernels, recurrent, work
from ratc_runtime.trace.blocks import Span
from ratc_runtime.trace.failure import TraceError, explain
from ratc_runtime.trace.ledger import Ledger
from ratc_runtime.trace.mode import STEPS, RecordingMode
from ratc_runtime.trace.owners import Owners
from ratc_runtime.trace.request import Request
from ratc_runtime.trace.scratch import Scratch
from ratc_runtime.trace.work import Kernel
from ratc_runtime.trace.workload import make_engine, run_steps
from ratc_runtime.training.memory_rehearsal import noise


@dataclass(frozen=True)
class Recording:
    """The events of one batch size, as plain lists (they travel between processes)."""

    batch: int
    events: list[tuple[int, bool]]
    blocks: list[tuple[int, str, str, str]]  # bytes, phase, module, kind
    shapes: list[tuple[int, ...]]  # by block: bytes of an element, then the shape; empty if unknown
    scratch: dict[int, Scratch]  # by block: the rule for its bytes
    optional: list[int]  # blocks that a step can do with half of
    estimates: list[str]
    steps: list[int]
    parameters: dict[str, Any]
    kernels: list[Kernel]  # of the last step, in order
    classes: dict[str, str]  # of modules that FSDP2 can gather by themselves, by their names
    wrap: list[str]  # the classes of repeated layers
    spans: list[Span]  # the calls of blocks that may be recomputed


def record(request: Request, batch: int) -> Recording:
    """Record the steps of a request at one micro-batch.

    Changes torch's rules in this process if the request asks for CUDA's: call it in a separate process. Raises
    TraceError.
    """
    if request.capability is not None:
        kernels.install(request.capability)
    ledger, owners = Ledger(), Owners()
    fake = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
    tf32, workspace = request.lock.training.tf32, request.cublas_workspace
    mode = RecordingMode(fake, ledger, owners, request.capability, tf32, workspace)
    work.listen(mode.library)
    # Garbage cycles are freed between steps, not at some allocation of Python's choosing: the order must hold.
    gc.disable()
    # Chunked attention repeats the same allocations hundreds of times; two rounds of each loop say it all.
    with only_enough_for_memory(), fused_maps.instead(flex.attend), fake, mode, mode.ranges:
        model = _build(request)
        task = make_task(request.lock)
        # Before the recording: the loader takes no memory of the card for single samples.
        _guarded("asking the data set for an example", lambda: task.example(1, torch.device("cpu")))
        criterion = _guarded("building the loss", task.loss)
        dtype = AUTOCAST.get(request.lock.training.precision) if request.engine == "deepspeed" else None
        groups = _guarded("moving the model to the device", lambda: _place(model, criterion, dtype, mode, request))
        for parameter in model.parameters():  # initial values are not those of training
            mode.constants.forget(parameter)
        if request.compiled:
            with _disable_current_modes():
                _guarded("compiling the model", lambda: _compile(request, model, task, batch, mode))
        owners.watch(model)
        mode.spans.watch(recompute.blocks(model))
        model.to = lambda *_, **__: model  # type: ignore[method-assign]  # it is there already
        _watch_gradients(model, ledger, owners)  # before an engine's own hooks, which may take the gradients away
        mode.recording = True  # some optimizers have their states from the start
        engine = _guarded("making the optimizer", lambda: make_engine(request, model))
        _as_on_cuda(engine, request)

        def start_phase(phase: str) -> str:
            if ledger.phase == "backward":
                mode.spans.ended()
            return ledger.start_phase(phase)

        def before() -> None:
            gc.collect()
            if engine.optimizer is not None:
                _mark_state(engine.optimizer, ledger)
            ledger.start_step()

        _guarded(
            lambda: _step(ledger.phase, request),
            lambda: run_steps(request, engine, task, criterion, batch, STEPS, start_phase, before),
            model,
        )
        if engine.optimizer is not None:
            _mark_state(engine.optimizer, ledger)
        gc.collect()
        mode.recording = False
        blocks = [(block.size, block.phase, block.module, ledger.kind_of(block)) for block in ledger.blocks]
        asked = {"uncompiled"} if request.content["training"].get("compile") else set()
        compiling = {"compiled"} if request.compiled else asked
        layered = {"recurrent"} if any(isinstance(module, nn.RNNBase) for module in model.modules()) else set()
        fused = {"fused"} if request.lock.model.attention_memory == "fused" else set()
        estimates = mode.estimates | compiling | layered | fused
        optional = [number for number, block in enumerate(ledger.blocks) if block.optional]
        uneven = {number: block.scratch for number, block in enumerate(ledger.blocks) if block.scratch}
        recording = Recording(
            batch,
            list(ledger.events),
            blocks,
            [block.shape for block in ledger.blocks],
            uneven,
            optional,
            sorted(estimates),
            list(ledger.steps),
            _parameters(model, groups if request.engine == "deepspeed" else None),
            mode.work.kernels,
            units.possible(model),
            units.repeated(model),
            mode.spans.of_backward(),
        )
        ledger.close()
    owners.forget()
    return recording


def _compile(request: Request, model: nn.Module, task: Task, batch: int, mode: RecordingMode) -> None:
    """Compile the model for the images of a micro-batch, as it is called in a step."""
    with mode.fake:
        image, _ = noise(task, request.lock, batch, torch.device("cpu"))
    model.train()
    compiled.compile_model(model, image, mode, AUTOCAST.get(request.lock.training.precision))


def _step(phase: str, request: Request) -> str:
    """Return the name of the code that a phase of the step runs."""
    if phase == "optimizer":
        return "a step of the optimizer"
    return "calling the loss" if phase == "loss" and ":" in request.lock.training.loss.name else "calling the model"


def _guarded(doing: str | Callable[[], str], call: Callable[[], Any], model: nn.Module | None = None) -> Any:
    try:
        return call()
    except TraceError:
        raise
    except BaseException as error:  # the user's code may raise anything, SystemExit too
        raise TraceError(explain(error, doing if isinstance(doing, str) else doing(), model)) from error


def _build(request: Request) -> nn.Module:
    """Build the model without memory, or for real if its code needs real numbers."""
    try:
        with _fake_parameters():
            return build_model(request.lock)
    except SystemExit as error:
        raise TraceError(explain(error, "building the model")) from error
    except Exception:  # the real attempt raises the error, if there is one
        gc.collect()
    with _disable_current_modes():
        return _guarded("building the model", lambda: build_model(request.lock))


@contextlib.contextmanager
def _fake_parameters() -> Iterator[None]:
    """Make every parameter a fake tensor at once, including small ones, which the mode would compute for real."""
    original, truncated = nn.Parameter.__new__, nn.init._no_grad_trunc_normal_

    def new(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        if isinstance(data, torch.Tensor) and not isinstance(data, FakeTensor):
            data = torch.empty_strided(data.size(), data.stride(), dtype=data.dtype, device="cpu")
        return original(cls, data, requires_grad)

    nn.Parameter.__new__ = new  # type: ignore[method-assign]  # until `finally`
    # It draws again until all values are inside, and looks at them; no value matters here.
    nn.init._no_grad_trunc_normal_ = lambda tensor, *_, **__: tensor
    try:
        yield
    finally:
        nn.Parameter.__new__ = original  # type: ignore[method-assign]  # as above
        nn.init._no_grad_trunc_normal_ = truncated


def _place(
    model: nn.Module, criterion: Any, dtype: torch.dtype | None, mode: RecordingMode, request: Request
) -> list[int]:
    """Put weights and buffers on the device, in the order in which `module.to(device)` does, and note them.

    Return each noted parameter's group of the optimizer: an even number (decayed), the odd one behind it (not), or -1
    if it is not trained.
    """
    ledger = mode.ledger
    # Of a model that was built for real it is not known which buffers are random.
    constant = all(isinstance(parameter, FakeTensor) for parameter in model.parameters())
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    own = request.lock.training.parameter_groups
    numbers = group_numbers(model, own)
    groups: dict[int, int] = {}
    moved: dict[int, nn.Parameter] = {}  # by the old object, so that shared weights stay shared
    originals: list[nn.Parameter] = []  # alive until the end, so that no identity is used twice
    roots = [model, criterion] if isinstance(criterion, nn.Module) else [model]
    for root in roots:
        for name, module in _children_first(root, ""):
            for key, parameter in module._parameters.items():
                if parameter is None:
                    continue
                fake = moved.get(id(parameter))
                if fake is None:
                    fake = moved[id(parameter)] = _moved_parameter(parameter, dtype)
                    originals.append(parameter)
                    block = ledger.add(fake, name, "parameter")
                    group = 2 * numbers.get(id(parameter), len(own)) + int(parameter.dim() < 2)
                    group = group if id(parameter) in trained else -1
                    groups.setdefault(block, group)
                module._parameters[key] = fake
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    moved_buffer = module._buffers[key] = _converted(buffer, dtype)
                    ledger.add(moved_buffer, name, "buffer")
                    if constant:
                        mode.constants.copy(buffer, moved_buffer)
            if request.capability is not None and request.engine == "torch":  # DeepSpeed has buffers of its own
                recurrent.flatten(module, ledger, name)
    return list(groups.values())


def _children_first(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    found = []
    for key, child in module.named_children():
        found += _children_first(child, f"{name}.{key}" if name else key)
    return [*found, (name, module)]


def _converted(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if isinstance(tensor, FakeTensor) and tensor.dtype == dtype:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=dtype, device="cpu")


def _moved_parameter(parameter: nn.Parameter, dtype: torch.dtype | None) -> nn.Parameter:
    fake = _converted(parameter, dtype)
    return parameter if fake is parameter else nn.Parameter(fake, requires_grad=parameter.requires_grad)


def _watch_gradients(model: nn.Module, ledger: Ledger, owners: Owners) -> None:
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.requires_grad:

                def note(leaf: torch.Tensor, name: str = name) -> None:
                    if leaf.grad is not None:
                        ledger.mark(leaf.grad, "gradient", name)

                parameter.register_post_accumulate_grad_hook(note)


def _mark_state(optimizer: torch.optim.Optimizer, ledger: Ledger) -> None:
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                ledger.mark(value, "optimizer")


def _as_on_cuda(engine: Any, request: Request) -> None:
    """Make the engine choose as for CUDA tensors.

    Clipping sums norms over lists of tensors on either device, but does not support fake ones. AdamW is fused on
    either; the others' default on CUDA is to work on lists ("foreach"), on the CPU tensor by tensor. A loss scale
    decides by its value whether to step: the step that is not skipped needs the memory.
    """
    torch.nn.utils.clip_grad._has_foreach_support = lambda tensors, device: True
    if engine.optimizer is None:
        return
    if request.capability is not None:
        for group in engine.optimizer.param_groups:
            if group.get("foreach", False) is None:  # an own optimizer; the runtime's have decided
                group["foreach"] = not group.get("fused")

    def step(optimizer: torch.optim.Optimizer, state: Any, *args: Any, **kwargs: Any) -> None:
        optimizer.step(*args, **kwargs)

    engine.scaler._maybe_opt_step = step


def _parameters(model: nn.Module, groups: list[int] | None) -> dict[str, Any]:
    parameters = list(model.parameters())
    own = [sum(p.numel() * p.element_size() for p in module.parameters(recurse=False)) for module in model.modules()]
    return {
        "count": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
        "largest_module_bytes": max(own, default=0),
        "groups": groups,
    }
