"""Plain torch: one process, or DistributedDataParallel over several."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed.world import World, check_world, group_timeout, local_device
from ratc_runtime.engine.base import BaseEngine, SkipCounter
from ratc_runtime.engine.optimizer import make_optimizer, with_own_kernels


class TorchEngine(BaseEngine):
    """Plain torch: one process, or several under DistributedDataParallel; fp16 with a gradient scaler."""

    def __init__(self, lock: Lock, model: nn.Module) -> None:
        device = local_device(lock)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            dist.init_process_group(lock.parallel.backend, timeout=group_timeout(lock))
        ready = dist.is_initialized()
        size, rank = (dist.get_world_size(), dist.get_rank()) if ready else (1, 0)
        check_world(lock, size)
        super().__init__(lock, World(rank, size, device))
        self.module = self._place(lock, model, device)
        self.optimizer = make_optimizer(self.module, lock)
        if lock.training.compile:
            self.module.compile()
        self.model = self._replicate(self.module) if size > 1 else self.module
        self.scaler = torch.amp.GradScaler(device.type, enabled=lock.training.precision == "fp16")
        self._skipped = SkipCounter()

    def _place(self, lock: Lock, model: nn.Module, device: torch.device) -> nn.Module:
        return model.to(device)

    def _replicate(self, module: nn.Module) -> nn.Module:
        """Return the model that the step calls, which reduces gradients over the processes."""
        device = self.world.device
        return nn.parallel.DistributedDataParallel(
            module,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=True,  # RAT has weights that only masked inputs use
        )

    @property
    def skipped_steps(self) -> int:
        return self._skipped.value

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        if last or self.world.size == 1:
            return contextlib.nullcontext()
        return self.model.no_sync()

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss / self.accumulation).backward()

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        norm = None
        if max_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), max_norm).detach()
        self.updating = True
        self.scaler.step(self.optimizer)
        self.updating = False
        with self._skipped.watch(self.scaler):
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Any]:
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(with_own_kernels(state["optimizer"], self.optimizer))
        self.scaler.load_state_dict(state["scaler"])
        self._skipped.value = int(state.get("skipped_steps", 0))
