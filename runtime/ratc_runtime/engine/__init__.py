"""The engines behind a training step, one file each: plain torch (one process or DDP) and Accelerate, FSDP2 and
DeepSpeed, each by itself and through Accelerate. docs/concepts/backends.md lists the engine for each spec.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.engine.base import AUTOCAST, BaseEngine
from ratc_runtime.engine.optimizer import make_optimizer
from ratc_runtime.engine.plain import TorchEngine

__all__ = ["AUTOCAST", "BaseEngine", "TorchEngine", "make_engine", "make_optimizer"]


def make_engine(lock: Lock, model: nn.Module, folder: Path, reduced: bool = False) -> BaseEngine:
    """Start the lock's engine on a model; `folder` holds deepspeed.json.

    `reduced`: the lock's micro-batch is smaller than the reviewed one in deepspeed.json. Raises R502 if the process
    group is not the lock's, R503 if the engine's batch is not, R504 if torch has no such device, R529 if DeepSpeed
    cannot be used here.
    """
    if lock.engine.deepspeed:
        # Imported only if they are used: each of them takes longer to import than the rest of the runtime.
        from ratc_runtime.engine.with_deepspeed import AccelerateDeepSpeedEngine, DeepSpeedEngine

        kind = AccelerateDeepSpeedEngine if lock.engine.use_accelerate else DeepSpeedEngine
        return kind(lock, model, folder, reduced)
    if lock.fsdp2 is not None:
        if lock.engine.use_accelerate:
            from ratc_runtime.engine.accelerate_fsdp2 import AccelerateFsdp2Engine

            return AccelerateFsdp2Engine(lock, model)
        from ratc_runtime.engine.plain_fsdp2 import TorchFsdp2Engine

        return TorchFsdp2Engine(lock, model)
    if lock.engine.use_accelerate:
        from ratc_runtime.engine.with_accelerate import AccelerateEngine

        return AccelerateEngine(lock, model)
    return TorchEngine(lock, model)
