"""FSDP2 under Accelerate.

Accelerate shards only on accelerators; on the CPU (gloo) the assignments of its state that it leaves out are made here,
and everything else is its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.engine.shards import ShardedEngine, asked_of, mixed_precision
from ratc_runtime.engine.with_accelerate import AccelerateEngine, make_accelerator


class AccelerateFsdp2Engine(ShardedEngine, AccelerateEngine):
    """Accelerate shards the units that `accelerate.yaml` names by their classes."""

    def _accelerate(self, lock: Lock, model: nn.Module) -> Any:
        """Return the Accelerator. Raises R594."""
        asked = asked_of(lock)
        wrapped = self.choose_units(lock, model)
        # Accelerate's own slice of its mesh; nothing that a user could change.
        warnings.filterwarnings("ignore", message="Slicing a flattened dim from root mesh")
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            reshard_after_forward=asked.shard != "grads",
            auto_wrap_policy="transformer_based_wrap" if wrapped else "no_wrap",
            transformer_cls_names_to_wrap=wrapped or None,
            mixed_precision_policy=mixed_precision(lock),
            cpu_offload=asked.offload,
            state_dict_type="SHARDED_STATE_DICT",
            activation_checkpointing=False,  # the model's own, as with every engine
            cpu_ram_efficient_loading=False,
        )
        mesh = ParallelismConfig(
            dp_replicate_size=lock.parallel.world_size // asked.shard_size, dp_shard_size=asked.shard_size
        )
        accumulation = GradientAccumulationPlugin(
            num_steps=lock.training.gradient_accumulation_steps,
            sync_each_batch=True,  # else whole gradients would stay from one micro-batch to the next
        )
        options = {"fsdp_plugin": plugin, "gradient_accumulation_plugin": accumulation}
        if lock.hardware.device == "cuda":
            return make_accelerator(lock, parallelism_config=mesh, **options)
        accelerator = make_accelerator(lock, **options)
        state = accelerator.state
        state.distributed_type, state.fsdp_plugin, state.parallelism_config = DistributedType.FSDP, plugin, mesh
        state.device_mesh = mesh.get_device_mesh("cpu")
        return accelerator

    def _place(self, model: nn.Module, device: torch.device) -> None:
        """Leave the model on the host: FSDP2 moves one unit after the other, so that the card never holds it whole."""

    def effective(self) -> dict[str, Any]:
        found = super().effective()
        if found["more"].get("distributed type") == "FSDP":
            del found["more"]["distributed type"]
        return found

    def differences(self, lock: Lock) -> Iterator[str]:
        yield from super().differences(lock)
        if self.accelerator.state.fsdp_plugin.reshard_after_forward != (asked_of(lock).shard != "grads"):
            yield "weights are kept after forward, or not, against the lock"
