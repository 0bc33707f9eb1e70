"""How a model is made smaller: the section `compression` of a spec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ratc.spec.base import NonNegative, PositiveInt, Section, Text
from ratc.spec.keys import Effect, Key


class Compression(Section):
    """A smaller model: weights set to zero, weights in int8; while training or after it."""

    sparsity: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of the weights of each linear and convolution layer that is zero in the end.",
        examples=[0.5],
    )
    structured: bool = Field(
        False,
        description="Set whole output channels to zero, those with the smallest L2 norm, instead of single weights.",
    )
    begin_epoch: PositiveInt | None = Field(
        None,
        description="Number of epochs before pruning begins; if absent, weights are pruned after training.",
        examples=[10],
    )
    end_epoch: PositiveInt | None = Field(
        None,
        description="Number of epochs after which `sparsity` is reached, fast at first and then slower; if absent, "
        "three quarters of `training.epochs`.",
        examples=[75],
    )
    quantization: Annotated[
        Literal["none", "weight_only", "dynamic"],
        Key((Effect.COSMETIC,), "another way to make the trained model smaller"),
    ] = Field(
        "none",
        description="Store the weights of linear layers in int8, after training; with `dynamic`, activations "
        "are int8, too.",
    )
    aware: bool = Field(
        False, description="Train with weights rounded as `quantization` rounds them (quantization-aware training)."
    )
    metric: Annotated[
        Text | None,
        Key((Effect.COSMETIC,), "another score limits the loss of quality when the trained model is made smaller"),
    ] = Field(
        None,
        description="Score that may not get worse by more than `tolerance`; if absent, `checkpoint.best_metric`.",
        examples=["dice"],
    )
    tolerance: Annotated[NonNegative, Key((Effect.COSMETIC,), "the smaller model may lose more, or less")] = Field(
        0.01, description="How much worse `metric` may be than before; beyond it, compressing fails."
    )
