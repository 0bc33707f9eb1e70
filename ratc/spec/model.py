"""The section `model` of a spec: the network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ratc.spec.base import (
    CALLABLE,
    Arguments,
    Depth,
    Kernel,
    Name,
    NonNegative,
    Positive,
    PositiveInt,
    Probability,
    Section,
    Side,
    Width,
)
from ratc.spec.keys import Effect, Key


class Model(Section):
    """The network. Keys beside `name`, `args` and `multi_scale` are arguments of the built-in model `rat`."""

    name: str = Field(
        "rat",
        pattern=f"^rat$|{CALLABLE}",
        description="Model: `rat` (Resolution Aware Transformer), or a `package.module:callable` that Python can "
        "import from the spec's folder.",
        examples=["rat", "my_package.models:UNet"],
    )
    multi_scale: bool = Field(
        False, description="Feed the model with image pyramids: one input per entry of `data.scales`."
    )
    args: Arguments = Field(
        {}, description="Keyword arguments of a model that is a `package.module:callable`.", examples=[{"width": 32}]
    )
    output: Name | None = Field(
        None,
        description="Key of the logits in the output of a custom model, if the output is a mapping.",
        examples=["out"],
    )
    attention_memory: Annotated[
        Literal["full", "fused", "chunked", "auto"],
        Key(
            (Effect.MEMORY, Effect.COST),
            "the same attention computed with other memory and speed",
            memory="decides",
            rate=False,
        ),
    ] = Field(
        "auto",
        description="How RAT computes its dense attention. `full` keeps the attention maps. `fused` (FlexAttention, "
        "needs compute capability 8.0 or later) and `chunked` (any hardware, slower) recompute them in a fraction of "
        "the memory. `auto` takes `full`, or `fused` if that allows a larger micro-batch. On hardware without `fused`, "
        "`auto` takes `chunked` if `full` does not fit.",
    )
    spatial_dims: Literal[2, 3] = Field(2, description="Spatial dimensions of the input: 2 for images, 3 for volumes.")
    input_features: PositiveInt | None = Field(
        None, description="Input channels; if absent, `data.channels`.", examples=[1, 3]
    )
    feature_dims: Width = Field(128, description="Width of the embedding.", examples=[128])
    num_blocks: Depth = Field(
        4, description="Number of blocks, each a grouping attention and a multi-resolution attention.", examples=[4]
    )
    num_heads: Width = Field(
        16, description="Attention heads; `feature_dims` divided by their number must be even.", examples=[16]
    )
    iters: Depth = Field(3, description="Iterations of each grouping attention.", examples=[3])
    proj_kernel_size: Kernel = Field(7, description="Kernel size of the first projection.", examples=[7])
    sga_kernel_size: Kernel = Field(7, description="Kernel size of the strided convolutions.", examples=[7])
    stride: Side | None = Field(
        None, description="Stride of each grouping attention; if absent, half the kernel size.", examples=[3]
    )
    sga_attention_type: Literal["dense", "sparse"] = Field(
        "dense", description="`sparse` needs the natten package and CUDA."
    )
    mlp_ratio: Positive = Field(
        4.0, le=1024, description="Hidden width of the MLPs, as a multiple of the width of the embedding.", examples=[4]
    )
    mlp_dropout: Probability = Field(0.0, description="Dropout rate in the MLPs.", examples=[0.1])
    mlp_bias: bool = Field(True, description="Whether the layers of the MLPs have a bias.")
    qkv_bias: bool = Field(True, description="Whether the query, key and value layers have a bias.")
    base_theta: Positive = Field(
        10000.0, description="Base of the frequencies of the rotary embedding.", examples=[10000.0]
    )
    learnable_rose: bool = Field(True, description="Whether the frequencies of the rotary embedding are learnt.")
    learnable_rose_scaling: bool = Field(True, description="Whether the scaling of the rotary embedding is learnt.")
    rose_initial_scaling: Literal["log", "rope", "identity", "linear", "power"] = Field(
        "log", description="Initial scaling of the rotary embedding."
    )
    init_jitter_std: NonNegative = Field(
        0.02, description="Noise on the initial frequencies of the rotary embedding.", examples=[0.02]
    )
    rotary_ratio: Probability = Field(0.5, description="Share of the embedding that is rotated.", examples=[0.5])
    frequency_scaling: Literal["none", "linear", "sqrt", "adaptive"] = Field(
        "sqrt", description="How the frequencies of the rotary embedding are scaled with the number of dimensions."
    )
    leading_tokens: Literal[0] = Field(0, description="Width of context tokens; segmentation uses none.")
    spacing: Positive | None = Field(
        None, description="Pixel spacing of the input, in real-world units.", examples=[1.0]
    )
