"""What all engines share: precision around the forward pass, train and eval mode, the count of skipped steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ratc_runtime import nested
from ratc_runtime.distributed import World
from ratc_runtime.lock import Lock

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class BaseEngine:
    """An engine of training_step: its model, optimizer and processes."""

    deepspeed = False
    #: What the step calls; `module` is the same without what makes processes meet.
    model: Any
    module: nn.Module
    optimizer: Any
    #: True while the optimizer changes weights: what fails then leaves some changed and some not.
    updating = False

    def __init__(self, lock: Lock, world: World) -> None:
        self.world = world
        self.accumulation = lock.training.gradient_accumulation_steps
        self._dtype = AUTOCAST.get(lock.training.precision)

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, whose `lr` the step sets."""
        return self.optimizer.param_groups  # type: ignore[no-any-return]

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps left out since the run began because gradients in fp16 overflowed; 0 without a loss scale.

        Reading it waits for the GPU.
        """
        return 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast of the lock's precision, or nothing for fp32."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, dtype=self._dtype)

    @property
    def alone(self) -> Callable[[Any], Any] | None:
        """The model without what makes processes meet; None where there is no such thing."""
        return self.module

    def set_split(self, lock: Lock) -> None:
        """Take over another micro-batch and accumulation, at a step boundary."""
        self.accumulation = lock.training.gradient_accumulation_steps
        self.module.zero_grad(set_to_none=True)

    def train(self) -> None:
        """Turn dropout and the like on."""
        self.module.train()

    def predict(self, image: Any) -> Any:
        """Return the model's outputs in float32, without gradients; every rank makes as many calls (ZeRO-3)."""
        self.module.eval()
        # Not inference_mode: RAT caches position tensors, and cached inference tensors break training.
        with torch.no_grad(), self.autocast():
            return nested.to_float(self.module(image))

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Return what a micro-batch runs in: gradients meet with the last one of a step."""
        raise NotImplementedError

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-batch's loss, divided by the accumulation."""
        raise NotImplementedError

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        """Clip, step, forget the gradients; return their norm before clipping, where it is known."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return the weights and the state of optimizer and loss scale (not with DeepSpeed)."""
        raise NotImplementedError

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        raise NotImplementedError

    def save_shards(self, folder: Path) -> None:
        """Write each rank's part into `folder` (DeepSpeed alone); every rank calls this."""
        raise NotImplementedError

    def load_shards(self, folder: Path) -> None:
        """Read back what `save_shards` wrote; every rank calls this."""
        raise NotImplementedError


class SkipCounter:
    """Counts the steps that a loss scale leaves out, on its device: to look would make the host wait in every step.

    The scale falls exactly when gradients were not finite. torch's scaler tells it in no other way where a fused
    optimizer decides on the device whether to step.
    """

    def __init__(self) -> None:
        self._count: torch.Tensor | int = 0

    @contextlib.contextmanager
    def watch(self, scaler: Any) -> Iterator[None]:
        """Look at the scale of `scaler` (None, or disabled, where there is none) before and after its update."""
        scale = getattr(scaler, "_scale", None)  # get_scale() would wait for the device
        before = None if scale is None else scale.clone()
        yield
        if before is not None:
            self._count = self._count + (scaler._scale < before).sum()

    @property
    def value(self) -> int:
        """The count; waits for the device."""
        return int(self._count)

    @value.setter
    def value(self, count: int) -> None:
        self._count = count
