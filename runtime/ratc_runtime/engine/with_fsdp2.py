"""FSDP2 under Accelerate: weights, gradients and the optimizer's states in shards, gathered unit by unit.

Accelerate shards only on accelerators; on the CPU (gloo) the two assignments of its state that it leaves out are made
here, and everything else is its own. The layers of `units.py` are the units; what is left belongs to the model's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from ratc_runtime.checkpoint import distributed
from ratc_runtime.config.lock import Lock
from ratc_runtime.config.sections import Fsdp2
from ratc_runtime.engine import units
from ratc_runtime.engine.base import AUTOCAST
from ratc_runtime.engine.optimizer import innermost
from ratc_runtime.engine.with_accelerate import AccelerateEngine, make_accelerator
from ratc_runtime.errors import RuntimeFinding


class Fsdp2Engine(AccelerateEngine):
    """FSDP2, or HSDP if the mesh has several groups of shards."""

    sharded = True

    def _accelerate(self, lock: Lock, model: nn.Module) -> Any:
        """Return the Accelerator. Raises R594 if `fsdp2.wrap` names a class that no module of the model has."""
        asked = _asked(lock)
        known = units.classes(model)
        missing = [name for name in asked.wrap or () if name not in known]
        if missing:
            raise RuntimeFinding(
                "R594",
                f"`parallel.wrap` names classes that no module of the model has: {', '.join(missing)}",
                f"the model's classes with parameters: {', '.join(known)[:400]}",
                "name classes of the model's layers, or remove `wrap`",
            )
        # Accelerate's own slice of its mesh; nothing that a user could change.
        warnings.filterwarnings("ignore", message="Slicing a flattened dim from root mesh")
        self.wrapped = units.repeated(model) if asked.wrap is None else list(asked.wrap)
        self._names = sorted(units.units(model, self.wrapped))
        self._unsynced = True
        low = AUTOCAST.get(asked.weights)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            reshard_after_forward=asked.shard != "grads",
            auto_wrap_policy="transformer_based_wrap" if self.wrapped else "no_wrap",
            transformer_cls_names_to_wrap=self.wrapped or None,
            # The same numbers as with DDP: gradients are reduced in fp32.
            mixed_precision_policy=MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32),
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

    @property
    def local_module(self) -> Callable[[Any], Any] | None:
        return None  # every unit is gathered from all ranks

    def effective(self) -> dict[str, Any]:
        found = super().effective()
        if found["more"].get("distributed type") == "FSDP":
            del found["more"]["distributed type"]
        return found

    def verify(self, lock: Lock) -> None:
        """Raise R503 as the other engines, and if units, mesh or the time of resharding are not the lock's."""
        super().verify(lock)
        asked = _asked(lock)
        sharded = {name: module for name, module in self.module.named_modules() if isinstance(module, FSDPModule)}
        mesh = next(p.device_mesh for p in self.module.parameters() if isinstance(p, DTensor))
        copies = lock.parallel.world_size // asked.shard_size
        wrong = [f"{name} is not a unit" for name in self._names if name not in sharded]
        if tuple(mesh.shape) != ((copies, asked.shard_size) if copies > 1 else (asked.shard_size,)):
            wrong.append(f"mesh {tuple(mesh.shape)}, lock {copies} x {asked.shard_size}")
        if self.accelerator.state.fsdp_plugin.reshard_after_forward != (asked.shard != "grads"):
            wrong.append("weights are kept after forward, or not, against the lock")
        if wrong:
            raise RuntimeFinding("R503", "FSDP2 runs with other values than the lock", "\n".join(wrong))

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        norm = super().update(max_norm)
        self._unsynced = True
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def predict(self, image: Any) -> Any:
        self._share_buffers()
        return super().predict(image)

    def _share_buffers(self) -> None:
        """Take rank 0's buffers (running means), as DDP does. Every rank calls this."""
        if self._unsynced:
            for buffer in self.module.buffers():
                dist.broadcast(buffer, 0)
        self._unsynced = False

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights, buffers and the optimizer's states by name, as shards.

        Weights that the last forward pass gathered are dropped first: values that are read into them would be lost.
        """
        self._share_buffers()
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        found = {f"{distributed.MODEL}{name}": value for name, value in self.module.state_dict().items()}
        state = innermost(self.optimizer).state
        for name, parameter in self.module.named_parameters():
            for key, value in state.get(parameter, {}).items():
                found[f"{distributed.OPTIMIZER}{name}:{key}"] = value
        return found

    def save_shards(self, folder: Path) -> None:
        """Write each rank's part into `folder`. Every rank calls this. Raises OSError."""
        distributed.write(folder / distributed.FOLDER, self._tensors())

    def load_shards(self, folder: Path) -> None:
        """Read a checkpoint of any number of ranks. Every rank calls this. Raises OSError."""
        where = folder / distributed.FOLDER
        self._make_state(set(distributed.contents(where).state_dict_metadata))
        distributed.read_into(where, self._tensors())
        self._unsynced = False

    def _make_state(self, names: set[str]) -> None:
        """Give the optimizer the states that a checkpoint has, before they are read, and no others."""
        state = innermost(self.optimizer).state
        state.clear()
        keys = {name.partition(":")[2] for name in names if name.startswith(distributed.OPTIMIZER)}
        for name, parameter in self.module.named_parameters():
            own = [key for key in sorted(keys) if f"{distributed.OPTIMIZER}{name}:{key}" in names]
            if own:
                # The count of steps is one number, on the device of the kernels; all others are like the weight.
                state[parameter] = {
                    key: torch.zeros((), dtype=torch.float32, device=parameter.device)
                    if key == "step"
                    else torch.zeros_like(parameter, requires_grad=False)
                    for key in own
                }


def _asked(lock: Lock) -> Fsdp2:
    assert lock.fsdp2 is not None  # make_engine looks
    return lock.fsdp2
