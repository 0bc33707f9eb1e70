"""What all engines share: precision around the forward pass, train and eval mode, the count of skipped steps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ratc_runtime import pytree
from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed.world import World
from ratc_runtime.engine.optimizer import optimizer_facts
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.training import compiling

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
        """The model without what makes processes meet; None if there is no such thing."""
        return self.module

    def effective(self) -> dict[str, Any]:
        """Return what this engine really does, in the words of `verify`; read from what computes, not from the lock."""
        return {
            "world size": dist.get_world_size() if dist.is_initialized() else 1,
            "gradient accumulation": self.accumulation,
            "precision": next((name for name, dtype in AUTOCAST.items() if dtype == self._dtype), "fp32"),
            **optimizer_facts(self.optimizer),
        }

    def verify(self, lock: Lock) -> None:
        """Raise R503 unless what the engine really does is what the lock says; called before the first step.

        Libraries read variables of the environment that lie over what they are called with.
        """
        training, found = lock.training, self.effective()
        expected = {
            "world size": lock.parallel.world_size,
            "gradient accumulation": training.gradient_accumulation_steps,
            "precision": training.precision,
            "optimizer": training.optimizer,
            "betas": tuple(training.betas),
        }
        decays = {training.weight_decay, 0.0}
        wrong = [f"{name} {found[name]}, lock {value}" for name, value in expected.items() if found[name] != value]
        if not found["weight decay"] <= decays:
            wrong.append(f"weight decay {sorted(found['weight decay'])}, lock {training.weight_decay}")
        # What the lock has no key for, because there is one value.
        wrong += [f"{name} {value}, lock none" for name, value in found.get("more", {}).items()]
        wrong += [f"torch's compiler is off ({name}), lock on" for name in compiling.switched_off(lock, os.environ)]
        if self.world.device.type == "cuda":
            wrong += _tf32(training.tf32)
        if wrong:
            raise RuntimeFinding(
                "R503",
                "the engine differs from the lock",
                "\n".join(wrong),
                "a variable of the environment lies over the lock (ACCELERATE_…, FSDP_…, NVIDIA_TF32_OVERRIDE): start"
                " with the compiled script, which removes them",
            )

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
            return pytree.to_float(self.module(image))

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Return what a micro-batch runs in: gradients meet with the last one of a step."""
        raise NotImplementedError

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-batch's loss, divided by the accumulation."""
        raise NotImplementedError

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        """Clip, step, forget the gradients; return their norm before clipping, if it is known."""
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


def _tf32(wanted: bool) -> list[str]:
    """Return what is wrong with the use of TF32, which NVIDIA's libraries let a variable of theirs decide."""
    asked = os.environ.get("NVIDIA_TF32_OVERRIDE")
    found = torch.backends.cuda.matmul.allow_tf32 if asked is None else asked != "0"
    return [] if found == wanted else [f"tf32 {found}, lock {wanted}"]


class SkipCounter:
    """Counts the steps that a loss scale leaves out, on its device: to look would make the host wait in every step.

    The scale falls exactly when gradients were not finite. torch's scaler tells it in no other way if a fused
    optimizer decides on the device whether to step.
    """

    def __init__(self) -> None:
        self._count: torch.Tensor | int = 0

    @contextlib.contextmanager
    def watch(self, scaler: Any) -> Iterator[None]:
        """Look at the scale of `scaler` (None, or disabled, if there is none) before and after its update."""
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
