"""Hugging Face Accelerate without DeepSpeed: one process, or its DistributedDataParallel over several."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed.world import World, check_world, group_timeout, local_device
from ratc_runtime.engine.base import BaseEngine, SkipCounter
from ratc_runtime.engine.optimizer import make_optimizer, with_own_kernels
from ratc_runtime.errors import RuntimeFinding


class AccelerateEngine(BaseEngine):
    """Accelerate wraps model and optimizer, casts, scales and clips. The loop keeps its own loaders."""

    def __init__(self, lock: Lock, model: nn.Module) -> None:
        device = local_device(lock)
        self.accelerator = self._accelerate(lock, model)
        check_world(lock, self.accelerator.num_processes)
        super().__init__(lock, World(self.accelerator.process_index, self.accelerator.num_processes, device))
        self._place(model, device)
        optimizer = make_optimizer(model, lock)
        if lock.training.compile:
            model.compile()
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.module = self.accelerator.unwrap_model(self.model)
        self._skipped = SkipCounter()
        self._last = True

    def _accelerate(self, lock: Lock, model: nn.Module) -> Any:
        return make_accelerator(lock)

    def _place(self, model: nn.Module, device: torch.device) -> None:
        # Before the optimizer is made: which kernels it may use depends on where its parameters lie.
        model.to(device)

    @property
    def skipped_steps(self) -> int:
        return self._skipped.value

    def set_split(self, lock: Lock) -> None:
        self.accumulation = lock.training.gradient_accumulation_steps
        self.accelerator.gradient_accumulation_steps = self.accumulation
        self.accelerator.step = 0  # counts micro-batches; some of a failed step are among them
        # Not the optimizer's: in the middle of a step Accelerate makes that do nothing.
        self.module.zero_grad(set_to_none=True)

    def effective(self) -> dict[str, Any]:
        return super().effective() | accelerator_facts(self.accelerator)

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        # Accelerate counts; every step has all its micro-batches, so its count and `last` agree.
        self._last = last
        return self.accelerator.accumulate(self.model)

    def backward(self, loss: torch.Tensor) -> None:
        if self.accelerator.sync_gradients != self._last:
            raise RuntimeFinding(
                "R503",
                "Accelerate steps after another micro-batch than the lock says",
                f"accumulation over {self.accelerator.gradient_accumulation_steps}, lock {self.accumulation}",
            )
        self.accelerator.backward(loss)  # divides by the accumulation steps

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        norm = None
        if max_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.module.parameters(), max_norm).detach()
        self.updating = True
        with self._skipped.watch(self.accelerator.scaler):
            self.optimizer.step()  # updates the loss scale too
        self.updating = False
        self.optimizer.zero_grad()
        return norm

    def state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "skipped_steps": self.skipped_steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(with_own_kernels(state["optimizer"], self.optimizer))
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._skipped.value = int(state.get("skipped_steps", 0))


def accelerator_facts(accelerator: Any) -> dict[str, Any]:
    """Return Accelerate's actual settings, which ACCELERATE_* variables may have changed, by the names in `verify`."""
    kind, compiler = accelerator.distributed_type.value, accelerator.state.dynamo_plugin.backend.value
    more = {} if kind in ("NO", "MULTI_GPU", "MULTI_CPU", "DEEPSPEED") else {"distributed type": kind}
    if compiler != "NO":
        more["Accelerate's compiler"] = compiler
    precision = accelerator.mixed_precision
    return {
        "world size": accelerator.num_processes,
        "gradient accumulation": accelerator.gradient_accumulation_steps,
        "precision": "fp32" if precision == "no" else precision,
        "more": more,
    }


def make_accelerator(lock: Lock, **options: Any) -> Any:
    """Return the Accelerator of a lock. `options` are for DeepSpeed, whose configuration holds the precision, and for
    FSDP2, which has the accumulation among them.
    """
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    if lock.parallel.world_size > 1 or lock.engine.deepspeed:
        # Without a name CPU processes stay apart; with one a single process looks for a group it has not.
        handlers.append(InitProcessGroupKwargs(backend=lock.parallel.backend, timeout=group_timeout(lock)))
    if not lock.engine.deepspeed:
        precision = lock.training.precision
        options |= {"cpu": lock.hardware.device == "cpu", "mixed_precision": "no" if precision == "fp32" else precision}
    if "gradient_accumulation_plugin" not in options:
        options["gradient_accumulation_steps"] = lock.training.gradient_accumulation_steps
    return Accelerator(kwargs_handlers=handlers, **options)
