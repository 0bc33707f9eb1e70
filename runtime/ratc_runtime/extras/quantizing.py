"""int8 by torchao (extra `compress`): quantization of a trained model, or quantization-aware training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ratc_runtime.errors import RuntimeFinding

MODES = ("weight_only", "dynamic")


def quantize(model: nn.Module, mode: str) -> None:
    """Store the weights of linear layers in int8; `dynamic` computes with activations in int8, too.

    Raises R545 if torchao is not installed.
    """
    quantization = torchao()
    kinds = {
        "weight_only": quantization.Int8WeightOnlyConfig,
        "dynamic": quantization.Int8DynamicActivationInt8WeightConfig,
    }
    quantization.quantize_(model, kinds[mode]())


def make_aware(model: nn.Module) -> None:
    """Make linear layers compute with weights rounded as by int8, with one scale per output channel.

    Names and parameters of the model stay unchanged, so its checkpoints are those of the plain one. Activations are not
    rounded: torchao has no such training for `dynamic`. Raises R545 if torchao is not installed.
    """
    quantization = torchao()
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    weights = IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)
    quantization.quantize_(model, QATConfig(weight_config=weights, step="prepare"))


def torchao() -> Any:
    """Return torchao's quantization module. Raises R545 if it is not installed."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise RuntimeFinding("R545", "torchao is not installed", str(error), "pip install 'ratc[compress]'") from None
    return quantization
