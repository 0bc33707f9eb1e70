"""The traced step: the runtime's own model, loss, engine and loop, on batches of the requested shape.

Nothing here depends on fake tensors. Without them, the same code trains for real, which is how the tests count the
bytes of the CPU's allocator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from ratc_runtime.data import pytree
from ratc_runtime.engine import AUTOCAST, TorchEngine
from ratc_runtime.tasks.base import Task
from ratc_runtime.trace.request import Request
from ratc_runtime.training.memory_rehearsal import noise
from ratc_runtime.training.step import StepResult, training_step

Phase = Callable[[str], str]


class DeepSpeedStep:
    """The computation of DeepSpeed's engine: weights in the lock's precision, no autocast, no optimizer.

    A gradient is freed in its hook, after ZeRO has copied it into a bucket (`process_gradients` of
    deepspeed/runtime/zero/stage_1_and_2.py, `reduce_ready_partitions_and_remove_grads` of stage3.py). The compiler
    computes flat partitions and buckets.
    """

    def __init__(self, request: Request, model: nn.Module) -> None:
        self.module = model
        self.accumulation = request.accumulation
        self.dtype = AUTOCAST.get(request.lock.training.precision, torch.float32)
        self.optimizer = None
        self.parameter_groups: list[dict[str, Any]] = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_forget_gradient)

    def model(self, image: Any) -> torch.Tensor:
        return self.module(pytree.apply(lambda level: level.to(self.dtype), image))

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self.accumulation).backward()

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        return None


def _forget_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def make_engine(request: Request, model: nn.Module) -> Any:
    """Return the engine of the request for a model on the device."""
    if request.engine == "deepspeed":
        return DeepSpeedStep(request, model)
    return TorchEngine(request.lock, model)


class PhasedEngine:
    """An engine that announces the phases of the step."""

    def __init__(self, engine: Any, phase: Phase) -> None:
        self.engine, self.phase = engine, phase
        self.accumulate, self.autocast = engine.accumulate, engine.autocast
        if engine.optimizer is not None:
            engine.optimizer.register_step_pre_hook(lambda *_: self._set_phase("optimizer"))
            engine.optimizer.register_step_post_hook(lambda *_: self._set_phase("zero_grad"))

    def _set_phase(self, phase: str) -> None:
        self.phase(phase)

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.engine.parameter_groups

    def model(self, image: Any) -> torch.Tensor:
        self.phase("forward")
        out: torch.Tensor = self.engine.model(image)
        self.phase("loss")
        return out

    def backward(self, loss: torch.Tensor) -> None:
        self.phase("backward")
        self.engine.backward(loss)

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        self.phase("clip")
        return self.engine.update(max_norm)


def batches(request: Request, task: Task, batch: int, phase: Phase) -> Iterator[tuple[Any, Any]]:
    """Yield micro-batches as the loader does: an image (a list of them, one per scale), float32, and a target."""
    while True:
        phase("input")
        yield noise(task, request.lock, batch, torch.device("cpu"))  # no name here may keep it


def run_steps(
    request: Request,
    engine: Any,
    task: Task,
    criterion: Callable[..., torch.Tensor],
    batch: int,
    steps: int,
    phase: Phase = lambda name: name,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Make `steps` optimizer steps with micro-batches of `batch` samples, as the training loop does.

    `criterion` takes an output and a target and returns a scalar; `before` is called before each step.
    """
    phased = PhasedEngine(engine, phase)
    training = request.lock.training
    engine.module.train()
    result: StepResult | None = None
    for _ in range(steps):
        before()
        feed = batches(request, task, batch, phase)
        # The last step's losses are kept over the next one, as in the loop.
        result = training_step(
            phased, criterion, feed, request.accumulation, training.learning_rate, training.gradient_clipping
        )
    del result
