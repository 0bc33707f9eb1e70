"""FSDP2: weights, gradients and the optimizer's states in shards, gathered unit by unit.

The layers of `units.py` are the units; what is left belongs to the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from ratc_runtime.checkpoint import distributed
from ratc_runtime.config.lock import Lock
from ratc_runtime.config.sections import Fsdp2
from ratc_runtime.engine import units
from ratc_runtime.engine.base import AUTOCAST, BaseEngine
from ratc_runtime.engine.optimizer import innermost
from ratc_runtime.errors import RuntimeFinding


class ShardedEngine(BaseEngine):
    """What the engines of FSDP2, and of HSDP if the mesh has several groups of shards, have in common."""

    sharded = True
    _names: list[str]

    def choose_units(self, lock: Lock, model: nn.Module) -> list[str]:
        """Return the classes of the units. Raises R594 if `fsdp2.wrap` names none of the model, or for a
        parameter without a dimension.
        """
        asked = asked_of(lock)
        known = units.classes(model)
        missing = [name for name in asked.wrap or () if name not in known]
        if missing:
            raise RuntimeFinding(
                "R594",
                f"`parallel.wrap` names classes of no module inside the model, or of lists only: {', '.join(missing)}",
                f"the model's classes with parameters and a forward: {', '.join(known)[:400]}",
                "name classes of the model's layers, or remove `wrap`",
            )
        if scalars := [name for name, parameter in model.named_parameters() if parameter.dim() == 0]:
            raise RuntimeFinding(
                "R594",
                f"FSDP2 cannot shard parameters that are single numbers: {', '.join(scalars)[:400]}",
                help="give them a dimension, as `torch.ones(1)` has it, or use `strategy: ddp`",
            )
        wrapped = units.repeated(model) if asked.wrap is None else list(asked.wrap)
        self._names = sorted(units.units(model, wrapped))
        return wrapped

    @property
    def local_module(self) -> Callable[[Any], Any] | None:
        return None  # every unit is gathered from all ranks

    def verify(self, lock: Lock) -> None:
        """Raise R503 as the other engines, and if units, mesh or the time of resharding are not the lock's."""
        super().verify(lock)
        if wrong := list(self.differences(lock)):
            raise RuntimeFinding("R503", "FSDP2 runs with other values than the lock", "\n".join(wrong))

    def differences(self, lock: Lock) -> Iterator[str]:
        """Yield how the shards differ from the lock's."""
        sharded = {name for name, module in self.module.named_modules() if isinstance(module, FSDPModule)}
        mesh = next(p.device_mesh for p in self.module.parameters() if isinstance(p, DTensor))
        yield from (f"{name} is not a unit" for name in self._names if name not in sharded)
        if tuple(mesh.shape) != mesh_shape(lock):
            yield f"mesh {tuple(mesh.shape)}, lock {mesh_shape(lock)}"

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        norm = super().update(max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights, buffers and the optimizer's states by name, as shards.

        Weights that the last forward pass gathered are dropped first: values that are read into them would be lost.
        """
        self.share_buffers()
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


def asked_of(lock: Lock) -> Fsdp2:
    """Return the lock's section, which it has if its engine is one of these."""
    assert lock.fsdp2 is not None  # make_engine looks
    return lock.fsdp2


def mesh_shape(lock: Lock) -> tuple[int, ...]:
    """Return the sizes of the mesh: copies and shards of each, or the shards of the only copy."""
    size = asked_of(lock).shard_size
    copies = lock.parallel.world_size // size
    return (copies, size) if copies > 1 else (size,)


def mixed_precision(lock: Lock) -> MixedPrecisionPolicy:
    """Return the precision of gathered weights. Gradients are reduced in fp32: the same numbers as with DDP."""
    return MixedPrecisionPolicy(param_dtype=AUTOCAST.get(asked_of(lock).weights), reduce_dtype=torch.float32)
