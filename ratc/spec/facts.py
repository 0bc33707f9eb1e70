"""Hardware facts' shape: the one source of ``schemas/facts.schema.json``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ratc.spec.base import COMPUTE_CAPABILITY, MEMORY, Bytes, Count, NonNegative, Positive, PositiveInt, Section, Text

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Day = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]


class MeasuredPoint(Section):
    """What a training step took at one micro-batch size, in bytes."""

    micro_batch: PositiveInt = Field(..., description="Samples in a micro-batch.", examples=[2])
    peak_allocated_bytes: Bytes = Field(..., description="Peak memory of tensors.")
    peak_reserved_bytes: Bytes = Field(..., description="Peak memory that PyTorch's allocator held.")
    device_used_bytes: Bytes = Field(..., description="Memory in use on the whole device, after the steps.")
    samples_per_second: NonNegative = Field(..., description="Throughput of one process.")


class Measured(Section):
    """A measured training step, as `ratc profile --measure` writes it; it holds only for the very step it is of."""

    name: Text = Field(..., description="Model, in words for people.", examples=["my_package.models:UNet"])
    step: Digest = Field(
        ...,
        description="Digest of the model, the loss, the optimizer, the inputs, and your own modules beside the spec.",
    )
    card: Text = Field(..., description="Card: its id in ratc's catalogue of cards.", examples=["h100"])
    precision: Literal["fp32", "bf16", "fp16"] = Field(..., description="Precision of the step.")
    image_size: Annotated[list[PositiveInt], Field(min_length=2, max_length=3)] = Field(
        ..., description="Height and width of the images, or depth, height and width of a volume's patches."
    )
    attention_memory: Literal["full", "fused", "chunked"] = Field(
        ..., description="Kind of RAT's attention; `full` for other models."
    )
    activation_checkpointing: bool | Annotated[list[Text], Field(min_length=1)] = Field(
        ..., description="Whether activations were recomputed in the backward pass, or the blocks of which they were."
    )
    engine: Literal["torch"] = Field(..., description="Engine of the measurement: one process, without DeepSpeed.")
    allocator: Literal["native", "expandable_segments"] = Field(
        "native", description="How PyTorch's allocator took memory."
    )
    points: Annotated[list[MeasuredPoint], Field(min_length=1, max_length=2)] = Field(
        ...,
        description="Results for two micro-batch sizes, the smaller first; only one if the larger ran out of memory.",
    )
    outside_bytes: Bytes = Field(..., description="Memory in use on the device outside of PyTorch's allocator.")
    device_total_bytes: Bytes = Field(..., description="Memory of the device, as CUDA reports it.")
    gradient_bytes: Bytes = Field(
        ..., description="Memory of all gradients; with several processes, each holds them twice."
    )
    torch: Text = Field(..., description="Version of PyTorch.", examples=["2.13.0+cu130"])
    driver: Text | None = Field(None, description="Version of the driver.", examples=["580.65.06"])
    date: Day = Field(..., description="Day of the measurement.", examples=["'2026-11-23'"])


class MeasuredRate(Section):
    """A measured learning rate, as `ratc tune lr` writes it beside a spec."""

    learning_rate: Positive = Field(..., description="The rate.", examples=[3.1e-3])
    global_batch_size: PositiveInt = Field(
        ..., description="Global batch size of the measurement: samples per optimizer step.", examples=[8]
    )
    of: Digest = Field(..., description="Digest of the model, the data, the loss and the optimizer.")
    reason: Text = Field(..., description="Reason for this learning rate.")
    steps: PositiveInt = Field(..., description="Number of optimizer steps of the measurement.", examples=[87])
    device: Text = Field(..., description="The card, or `cpu`.", examples=["h100"])
    precision: Literal["fp32", "bf16", "fp16"] = Field(..., description="Precision of the steps.")
    date: Day = Field(..., description="Day of the measurement.", examples=["'2026-11-25'"])


class Facts(Section):
    """One machine type, the content of `--facts FILE`. `gpu` names a card of the catalogue, or describes one."""

    nodes: PositiveInt = Field(1, description="Number of machines of this kind.")
    gpus_per_node: Count = Field(..., description="GPUs on each machine; 0 for none.", examples=[8])
    gpu: Text | None = Field(None, description="Card: a name from ratc's catalogue of cards.", examples=["a100-80"])
    gpu_memory_mib: PositiveInt | None = Field(None, description="Memory of a card that is not in the catalogue.")
    compute_capability: str | None = Field(
        None,
        pattern=COMPUTE_CAPABILITY,
        description="NVIDIA's compute capability of a card that is not in the catalogue.",
        examples=["9.0"],
    )
    cpus: PositiveInt = Field(..., description="CPU cores on each node.", examples=[64])
    memory: Annotated[str, Field(pattern=MEMORY)] | PositiveInt | None = Field(
        None, description="Host memory on each node; a bare number is in GB.", examples=["512GB"]
    )
    measured: list[Measured] = Field(
        [], description="Measurements of training steps, which `ratc profile --measure` adds."
    )
