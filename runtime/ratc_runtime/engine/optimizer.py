"""The optimizer, and the choice among torch's implementations of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ratc_runtime.config.lock import Lock

_MADE: dict[str, Any] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def make_optimizer(model: nn.Module, lock: Lock) -> torch.optim.Optimizer:
    """Return the lock's optimizer. Parameters of fewer than two dimensions, as biases and norms, have no weight decay.

    The update is one fused kernel if torch has one (`fused_for`), else torch's "foreach" implementation.
    """
    training = lock.training
    wanted = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in wanted if p.dim() < 2], "weight_decay": 0.0},
    ]
    made = _MADE[training.optimizer]
    # A trace cannot follow torch's fused SGD, which has no kernel for fake tensors (torch 2.13).
    fused = training.optimizer != "sgd" and fused_for(wanted)
    return made(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        fused=fused,
        foreach=not fused,
        **own_values(lock),
    )


def own_values(lock: Lock) -> dict[str, Any]:
    """Return the arguments that the lock's optimizer has for itself: `betas` of AdamW and Adam, `momentum` of SGD."""
    training = lock.training
    return {"momentum": training.momentum} if training.optimizer == "sgd" else {"betas": tuple(training.betas)}


def optimizer_facts(optimizer: Any) -> dict[str, Any]:
    """Return the name, own values and weight decays of the innermost optimizer, without its wrappers."""
    innermost = optimizer
    while getattr(innermost, "optimizer", None) is not None:
        innermost = innermost.optimizer
    groups = optimizer.param_groups
    betas = {tuple(group["betas"]) for group in groups if "betas" in group}
    momenta = {float(group["momentum"]) for group in groups if "momentum" in group}
    own: dict[str, list[Any]] = {"betas": sorted(betas), "momentum": sorted(momenta)}
    return {
        "optimizer": type(innermost).__name__.lower(),
        **{name: values[0] if len(values) == 1 else values for name, values in own.items() if values},
        "weight decay": {float(group["weight_decay"]) for group in groups},
    }


def fused_for(parameters: Iterable[torch.Tensor]) -> bool:
    """Return whether torch's fused AdamW or Adam supports these parameters: all real ones, on CUDA and the CPU.

    It reads and writes every number once, while "foreach" makes temporaries of the model's size. On CUDA it is torch's
    fastest, and the peak of the update is lower; on two cores it took a quarter to a sixth of the time of the loop over
    tensors (docs/develop/speed.md). Each element's result depends on that element alone, so it is the same for any
    number of threads; it differs from the loop's in the last bit. With DeepSpeed it updates the flat partitions, on the
    GPU or, offloaded, on the host.
    """
    return all(parameter.is_floating_point() and parameter.device.type in ("cuda", "cpu") for parameter in parameters)


def with_own_kernels(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's saved state with this process's implementation. torch would use the saved one.

    So a checkpoint can move to another kind of device: the step counts are then on the device that the kernels need.
    """
    groups = [
        {**group, "fused": own["fused"], "foreach": own["foreach"]}
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**saved, "param_groups": groups}
