"""FSDP2 of plain torch."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from ratc_runtime.config.lock import Lock
from ratc_runtime.engine import units
from ratc_runtime.engine.plain import TorchEngine
from ratc_runtime.engine.shards import ShardedEngine, asked_of, mesh_shape, mixed_precision


class TorchFsdp2Engine(ShardedEngine, TorchEngine):
    """Plain torch shards the units, and what is left of the model."""

    def _place(self, lock: Lock, model: nn.Module, device: torch.device) -> nn.Module:
        """Shard the model, one unit after the other, so that the card never holds it whole. Raises R594."""
        asked, shape = asked_of(lock), mesh_shape(lock)
        wrapped = self.choose_units(lock, model)
        names = ("replicate", "shard")[-len(shape) :]
        options: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, shape, mesh_dim_names=names),
            "mp_policy": mixed_precision(lock),
            "offload_policy": CPUOffloadPolicy() if asked.offload else OffloadPolicy(),
        }
        for module in reversed(units.units(model, wrapped).values()):  # the inner ones first
            fully_shard(module, reshard_after_forward=asked.shard != "grads", **options)
        fully_shard(model, **options)
        return model

    def _replicate(self, module: nn.Module) -> nn.Module:
        return module

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Return an empty context: every micro-batch reduces, else whole gradients would stay between them."""
        return contextlib.nullcontext()
