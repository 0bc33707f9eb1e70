"""How a model is made smaller: the section `compression` of a spec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ratc.spec.base import NonNegative, PositiveInt, Section, Text
from ratc.spec.keys import Effect, Key


class Compression(Section):
    """A smaller model: weights set to zero, weights in int8; while training or after it."""

    sparsity: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of each linear and convolution layer's weights that is zero in the end.", examples=[0.5]
    )
    structured: bool = Field(
        False, description="Zero whole output channels, the smallest by their L2 norm, instead of single weights."
    )
    begin_epoch: PositiveInt | None = Field(
        None,
        description="Epochs that are trained before pruning begins; if absent, it is done after training.",
        examples=[10],
    )
    end_epoch: PositiveInt | None = Field(
        None,
        description="Epochs by which all of `sparsity` is reached, fast at first and slower then; three quarters of "
        "the training if absent.",
        examples=[75],
    )
    quantization: Annotated[
        Literal["none", "weight_only", "dynamic"],
        Key((Effect.COSMETIC,), "another way to make the trained model smaller"),
    ] = Field(
        "none", description="int8 weights of linear layers; `dynamic`: activations in int8, too. Done after training."
    )
    aware: bool = Field(
        False, description="Train with weights rounded as `quantization` will round them, so that they suit it."
    )
    metric: Annotated[
        Text | None,
        Key((Effect.COSMETIC,), "another score is held when the trained model is made smaller"),
    ] = Field(None, description="Score that must hold; `checkpoint.best_metric` if absent.", examples=["dice"])
    tolerance: Annotated[NonNegative, Key((Effect.COSMETIC,), "the smaller model may lose more, or less")] = Field(
        0.01, description="By how much that score may be worse than before; beyond it, compressing fails."
    )
