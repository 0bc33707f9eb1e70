"""The base of all engines: autocast, train and eval mode, and the count of skipped steps."""

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

from ratc_runtime.config.lock import Lock
from ratc_runtime.data import pytree
from ratc_runtime.distributed.world import World
from ratc_runtime.engine.optimizer import optimizer_facts, own_values
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.training import compiling

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class BaseEngine:
    """An engine of training_step: its model, optimizer and processes."""

    deepspeed = False
    #: Whether each rank writes its own part of a checkpoint, a folder.
    sharded = False
    #: The model that the step calls; `module` is the same one without collectives.
    model: Any
    module: nn.Module
    optimizer: Any
    #: True while the optimizer changes weights: an error then leaves some changed and some not.
    updating = False

    def __init__(self, lock: Lock, world: World) -> None:
        self.world = world
        self.accumulation = lock.training.gradient_accumulation_steps
        self._dtype = AUTOCAST.get(lock.training.precision)

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups. The step sets their `lr`."""
        return self.optimizer.param_groups

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps skipped since the run began because fp16 gradients overflowed; 0 without a loss scale.

        Reading it waits for the GPU.
        """
        return 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast of the lock's precision, or nothing for fp32."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, dtype=self._dtype)

    @property
    def local_module(self) -> Callable[[Any], Any] | None:
        """The model without collectives; None if it cannot run without them (ZeRO-3)."""
        return self.module

    def effective(self) -> dict[str, Any]:
        """Return the engine's actual settings by the names in `verify`, read from the objects in use and not from the
        lock.
        """
        return {
            "world size": dist.get_world_size() if dist.is_initialized() else 1,
            "gradient accumulation": self.accumulation,
            "precision": next((name for name, dtype in AUTOCAST.items() if dtype == self._dtype), "fp32"),
            **optimizer_facts(self.optimizer),
        }

    def verify(self, lock: Lock) -> None:
        """Raise R503 unless the engine's actual settings are the lock's. Called before the first step.

        Environment variables can override the arguments with which libraries are called.
        """
        training, found = lock.training, self.effective()
        expected = {
            "world size": lock.parallel.world_size,
            "gradient accumulation": training.gradient_accumulation_steps,
            "precision": training.precision,
            # Own optimizers have names and values of their own.
            **({} if ":" in training.optimizer else {"optimizer": training.optimizer}),
            # AdamW's part of Muon may have no weights.
            **{name: value for name, value in own_values(lock).items() if name in found},
        }
        decays = {training.weight_decay, 0.0, *(group.weight_decay for group in training.parameter_groups)}
        wrong = [
            f"{name} {found.get(name)}, lock {value}" for name, value in expected.items() if found.get(name) != value
        ]
        if ":" not in training.optimizer and not found["weight decay"] <= decays:
            wrong.append(f"weight decay {sorted(found['weight decay'])}, lock {sorted(decays)}")
        # Settings without a key in the lock, because they have only one allowed value.
        wrong += [f"{name} {value}, lock none" for name, value in found.get("more", {}).items()]
        wrong += [f"torch's compiler is off ({name}), lock on" for name in compiling.switched_off(lock, os.environ)]
        if self.world.device.type == "cuda":
            wrong += _tf32(training.tf32)
        if wrong:
            raise RuntimeFinding(
                "R503",
                "the engine differs from the lock",
                "\n".join(wrong),
                "an environment variable may override the lock (ACCELERATE_…, FSDP_…, NVIDIA_TF32_OVERRIDE): start "
                "with the compiled script, which removes such variables",
            )

    def set_split(self, lock: Lock) -> None:
        """Change micro-batch and accumulation, at a step boundary."""
        self.accumulation = lock.training.gradient_accumulation_steps
        self.module.zero_grad(set_to_none=True)

    def train(self) -> None:
        """Switch to training mode (dropout, batch norm)."""
        self.module.train()

    def evaluate(self) -> None:
        """Switch to evaluation mode, with rank 0's buffers. Every rank calls this."""
        self.share_buffers()
        self.module.eval()

    def share_buffers(self) -> None:
        """Take rank 0's buffers, which its checkpoints have: every rank then scores the same model. Every rank calls
        this.
        """
        if self.world.size > 1:
            for buffer in self.module.buffers():
                if buffer.is_floating_point() and buffer.is_contiguous():  # others are constants, or counts
                    dist.broadcast(buffer, 0)

    @contextlib.contextmanager
    def predicting(self) -> Iterator[None]:
        """Be in evaluation mode and without gradients, and then in the mode of before."""
        was = self.module.training
        self.module.eval()
        try:
            # Not inference_mode: RAT caches position tensors, and cached inference tensors break training.
            with torch.no_grad():
                yield
        finally:
            if was:
                self.module.train()

    def predict(self, image: Any) -> Any:
        """Return the model's outputs in float32, without gradients. Every rank makes as many calls (ZeRO-3)."""
        with self.predicting(), self.autocast():
            return pytree.to_float(self.module(image))

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch. Gradients are reduced with the last one of a step."""
        raise NotImplementedError

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-batch's loss, a scalar, divided by the accumulation."""
        raise NotImplementedError

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        """Clip, step, and drop the gradients; return their norm before clipping (a scalar), if it is known."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return the weights and the state of optimizer and loss scale (not if `sharded`)."""
        raise NotImplementedError

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state that `state` returned."""
        raise NotImplementedError

    def save_shards(self, folder: Path) -> None:
        """Write each rank's part into `folder` (`sharded`). Every rank calls this."""
        raise NotImplementedError

    def load_shards(self, folder: Path) -> None:
        """Read the files of `save_shards`. Every rank calls this."""
        raise NotImplementedError


def _tf32(wanted: bool) -> list[str]:
    """Return a line if the use of TF32 differs from the lock. NVIDIA's libraries read NVIDIA_TF32_OVERRIDE."""
    asked = os.environ.get("NVIDIA_TF32_OVERRIDE")
    found = torch.backends.cuda.matmul.allow_tf32 if asked is None else asked != "0"
    return [] if found == wanted else [f"tf32 {found}, lock {wanted}"]


class SkipCounter:
    """Counts the steps that a loss scale skips, on its device, because reading it makes the host wait.

    The scale falls exactly if gradients were not finite. torch's scaler gives no other sign if a fused optimizer
    decides on the device whether to step.
    """

    def __init__(self) -> None:
        self._count: torch.Tensor | int = 0

    @contextlib.contextmanager
    def watch(self, scaler: Any) -> Iterator[None]:
        """Compare the scale of `scaler` (None or disabled: no scale) before and after its update."""
        scale = getattr(scaler, "_scale", None)  # get_scale() would wait for the device
        before = None if scale is None else scale.clone()
        yield
        if before is not None:
            self._count = self._count + (scaler._scale < before).sum()

    @property
    def value(self) -> int:
        """The count. Reading it waits for the device."""
        return int(self._count)

    @value.setter
    def value(self, count: int) -> None:
        self._count = count
