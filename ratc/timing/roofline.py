"""The time of one process's step on a card, predicted from the kernels of its trace.

A kernel takes the longer of two times: that of its floating-point operations, at a share of the card's peak rate for
their type, and that of its bytes, at a share of the memory's bandwidth; and a fixed time for its launch. A convolution
takes both, for cuDNN also converts tensors whose channels do not come last. The shares were fitted to the step times of
24 cases on one H200 (`benchmarks/step_times.py`); docs/develop/step-times.md has the errors, each with the case's own
model left out of the fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from ratc.memory.trace import Trace
from ratc.memory.work import Kernel

#: Phases that each micro-batch has; the others happen once in an optimizer step.
OF_A_MICRO_BATCH = ("input", "forward", "loss", "backward")
#: Bytes of an element that cuDNN moves twice, to convert it, if a convolution's channels do not come last. A conversion
#: of 16-bit elements takes as long as one of 32-bit elements.
CONVERTED, HALF_BYTES = 4, 2
HALF = ("bf16", "fp16")
TENSOR_CORES = (*HALF, "tf32")


@dataclass(frozen=True, slots=True)
class Rates:
    """A card's peak rates: floating-point operations a second by type, and bytes a second of its memory."""

    operations: Mapping[str, float]
    bandwidth: float

    def of(self, kind: str) -> float:
        """Return the peak rate of a type in operations a second; that of fp32 if the card has no rate for it."""
        return self.operations.get(kind) or self.operations["fp32"]


@dataclass(frozen=True, slots=True)
class Shares:
    """The fractions of the peak rates that kernels of torch reach on average, and the seconds of a launch.

    ``half``, ``tf32`` and ``fp32`` are for products by type, ``convolution``, ``attention`` and ``recurrent`` for these
    kernels, ``memory`` for the bandwidth.
    """

    half: float
    tf32: float
    fp32: float
    #: Of a product's rate, if rows of its matrices do not begin at multiples of 16 bytes.
    unaligned: float
    convolution: float
    attention: float
    recurrent: float
    memory: float
    #: Of the bandwidth, while cuDNN converts tensors.
    conversion: float
    launch_s: float


#: Fitted by `python benchmarks/step_times.py --fit`.
FITTED = Shares(
    half=0.8,
    tf32=0.42,
    fp32=0.72,
    unaligned=0.38,
    convolution=0.8,
    attention=0.28,
    recurrent=0.21,
    memory=0.46,
    conversion=0.17,
    launch_s=10e-6,
)
#: The cards whose steps the shares were fitted to, and the factor around a prediction that holds 90 % of the measured
#: cases if their own model is left out of the fit. For other cards, which were not measured, its logarithm is doubled.
MEASURED_ON = ("h200",)
SPREAD, SPREAD_ELSEWHERE = 1.4, 2.0
NAMES = tuple(field.name for field in fields(Shares))


@dataclass(frozen=True, slots=True)
class StepTime:
    """The time of a step of one process, in seconds: in all, of its backward passes, and by class of kernel.

    ``operations`` are the floating-point operations of the step, ``bytes_`` the bytes that its kernels move.
    """

    seconds: float
    backward_s: float
    by_class: Mapping[str, float]
    operations: float
    bytes_: float


def class_of(operator: str, operations: float) -> str:
    """Return the class of an operator: convolution, attention, recurrent, product if it has operations, else memory."""
    if "convolution" in operator:
        return "convolution"
    if "dot_product" in operator or "flex_attention" in operator:
        return "attention"
    if "_cudnn_rnn" in operator:
        return "recurrent"
    return "product" if operations else "memory"


def launch_seconds(kernel: Kernel, micro_batch: int, rates: Rates, shares: Shares = FITTED) -> float:
    """Return the seconds of one launch of a kernel at a micro-batch, by the roofline of this module."""
    operations, size = kernel.sizes(micro_batch)
    kind = class_of(kernel.operator, operations)
    share = shares.half if kernel.type in HALF else shares.tf32 if kernel.type == "tf32" else shares.fp32
    if kernel.type in TENSOR_CORES:
        if kind == "product" and not kernel.regular:
            share *= shares.unaligned
        share = {"convolution": shares.convolution, "attention": shares.attention}.get(kind, share)
    if kind == "recurrent":
        share = shares.recurrent
    computing = operations / (rates.of(kernel.type) * share)
    if kind == "convolution":
        converting = 0.0
        if kernel.type in TENSOR_CORES and not kernel.regular:
            wide = size * CONVERTED / HALF_BYTES if kernel.type in HALF else size
            converting = 2 * wide / (rates.bandwidth * shares.conversion)
        return computing + converting + size / (rates.bandwidth * shares.memory) + shares.launch_s
    moving = size / (rates.bandwidth * shares.memory)
    return max(computing, moving) + shares.launch_s


def step_time(
    trace: Trace, micro_batch: int, accumulation: int, rates: Rates, shares: Shares = FITTED
) -> StepTime | None:
    """The time of an optimizer step of ``accumulation`` micro-batches; None if the trace's kernels are not known."""
    if not trace.work:
        return None
    repeated = {trace.phases.index(name) for name in OF_A_MICRO_BATCH if name in trace.phases}
    backward = trace.phases.index("backward") if "backward" in trace.phases else -1
    by_class: dict[str, float] = {}
    total = in_backward = all_operations = all_bytes = 0.0
    for kernel in trace.work:
        times = kernel.launches * (accumulation / trace.micro_batches if kernel.phase in repeated else 1)
        seconds = times * launch_seconds(kernel, micro_batch, rates, shares)
        operations, size = kernel.sizes(micro_batch)
        kind = class_of(kernel.operator, operations)
        by_class[kind] = by_class.get(kind, 0.0) + seconds
        total += seconds
        in_backward += seconds if kernel.phase == backward else 0.0
        all_operations += times * operations
        all_bytes += times * size
    return StepTime(total, in_backward, by_class, all_operations, all_bytes)


def spread(card: str) -> float:
    """The factor of the interval around a prediction on a card: from seconds / factor to seconds x factor."""
    return SPREAD if card in MEASURED_ON else SPREAD_ELSEWHERE
