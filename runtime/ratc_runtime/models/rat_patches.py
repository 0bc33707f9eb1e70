"""Patches for RAT as published: its rotary embedding under autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ratc_runtime.models import torchvision_operators


def import_rat() -> Any:
    """Import RAT and return its class."""
    torchvision_operators.define()
    from resolution_aware_transformer import ResolutionAwareTransformer

    return ResolutionAwareTransformer


def keep_rotary_in_float32(model: nn.Module) -> int:
    """Run every rotary spatial embedding of `model` in float32, under any autocast.

    RAT's embedding calls `view_as_complex`, which takes no bfloat16: RAT as published fails with bf16 weights and under
    CUDA's bf16 autocast. CPU autocast happens to cast that one call, and positions beyond 256 are then rounded. Its
    weights are read as float32 for the call as well. Under autocast the result stays float32, as autocast's own float32
    operations do; otherwise it has the input's dtype, as the following matrix products need.

    Returns the number of changed embeddings. A second call changes nothing.
    """
    changed = 0
    for module in model.modules():
        if type(module).__name__ == "RotarySpatialEmbedding" and "forward" not in module.__dict__:
            module.forward = _Float32Forward(module)
            changed += 1
    return changed


class _Float32Forward:
    """The forward of one rotary embedding, called in float32."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    # torch.compile (2.13) fails on the views between real and complex numbers here: it runs as it is, and the compiled
    # graphs end and begin around it.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives it no types
    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        module, device_type = self.module, x.device.type
        parameters = module._parameters
        own = dict(parameters)
        # DeepSpeed turns the whole model to bf16; autograd casts the gradient of such a view back to bf16.
        lower = {name: p for name, p in own.items() if p is not None and p.dtype != torch.float32}
        autocast = torch.is_autocast_enabled(device_type)
        try:
            for name, parameter in lower.items():
                parameters[name] = parameter.float()  # type: ignore[assignment]  # a view, until `finally`
            with torch.autocast(device_type, enabled=False):
                # The class's forward, so that neither this wrapper nor a hook runs again.
                result: torch.Tensor = type(module).forward(module, x.float(), *args, **kwargs)
        finally:
            parameters.update({name: own[name] for name in lower})
        return result if autocast else result.to(x.dtype)
