"""The optimizer, and the choice among torch's implementations of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ratc_runtime.config.lock import Lock


def make_optimizer(model: nn.Module, lock: Lock) -> torch.optim.Optimizer:
    """Return AdamW. Biases, norms and other parameters of fewer than two dimensions have no weight decay.

    The update is one fused kernel if torch has one (`fused_for`), else torch's "foreach" implementation.
    """
    training = lock.training
    wanted = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in wanted if p.dim() < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = training.betas
    fused = fused_for(wanted)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=(beta1, beta2),
        fused=fused,
        foreach=not fused,
    )


def optimizer_facts(optimizer: Any) -> dict[str, Any]:
    """Return the name, betas and weight decays of the innermost optimizer, without its wrappers."""
    innermost = optimizer
    while getattr(innermost, "optimizer", None) is not None:
        innermost = innermost.optimizer
    groups = optimizer.param_groups
    betas = {tuple(group["betas"]) for group in groups}
    return {
        "optimizer": type(innermost).__name__.lower(),
        "betas": betas.pop() if len(betas) == 1 else sorted(betas),
        "weight decay": {float(group["weight_decay"]) for group in groups},
    }


def fused_for(parameters: Iterable[torch.Tensor]) -> bool:
    """Return whether torch's fused AdamW supports these parameters: all real ones, on CUDA and the CPU.

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
