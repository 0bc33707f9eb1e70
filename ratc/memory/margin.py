"""The margin: the share of a card kept free beyond a prediction, from the kinds of estimates in it.

Each part covers the largest under-estimate among the committed measurements of its kind, with some room: `python
benchmarks/memory/replay.py` prints them, and tests/measurements/test_gpu_truth.py fails if one is larger. Parts for
which nothing was measured say so. For convolutions the least cap under which a step runs counts, since it decides the
choice: `python benchmarks/memory/recorded.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ratc.memory.terms import Device
from ratc.memory.trace import Trace
from ratc.memory.zero import Strategy

#: The measured compute capability, and the first and last version of torch without a difference between traces and
#: runs. `CARD` and `VERSION` are added for others.
CAPABILITY, TORCH = "9.0", ((2, 11), (2, 13))


@dataclass(frozen=True, slots=True)
class Part:
    """A share of the memory that is left to the allocator, and its reason."""

    share: float
    reason: str


EXACT = Part(0.005, "kernels whose memory is known")
#: By the names in a trace's ``estimates``. The parts for "fused" and "uncompiled" are chosen, not measured.
ESTIMATES = {
    "convolutions": Part(0.02, "cuDNN's workspaces of convolutions"),
    "recurrent": Part(0.015, "what cuDNN keeps for recurrent layers, by a fitted rule"),
    "fused": Part(0.02, "FlexAttention's kernels, whose memory was not measured in whole steps"),
    "compiled": Part(0.04, "torch.compile, whose buffers follow Inductor's rules in short"),
    "uncompiled": Part(0.03, "torch.compile, followed as if it were not compiled"),
}
#: If one of them takes more than this share of all that is alive at the peak.
UNMEASURED, LEAST = Part(0.025, "convolutions that are unlike all measured ones"), 0.02
DEEPSPEED = Part(0.005, "DeepSpeed's buffers")
#: These four shares are chosen, not measured.
FSDP2 = Part(0.02, "FSDP2's units and shards, which were never measured")
SEVERAL = Part(0.01, "several processes, which were never measured")
CARD = Part(0.015, "a compute capability that was never measured")
VERSION = Part(0.005, "a version of torch that was never measured")


def parts(trace: Trace, strategy: Strategy, device: Device, unmeasured: float = 0.0) -> tuple[Part, ...]:
    """Return the parts of a prediction's margin, the share of exact kernels first.

    ``unmeasured`` is the largest workspace of a convolution without a similar measurement, as a share of the live peak.
    """
    found = [EXACT, *(ESTIMATES[name] for name in trace.estimates)]
    if unmeasured > LEAST:
        found.append(UNMEASURED)
    if strategy.engine == "deepspeed":
        found.append(DEEPSPEED)
    if strategy.engine == "fsdp2":
        found.append(FSDP2)
    if strategy.world_size > 1:
        found.append(SEVERAL)
    if device.kernels != CAPABILITY:
        found.append(CARD)
    if not TORCH[0] <= _version(trace.torch) <= TORCH[1]:
        found.append(VERSION)
    return tuple(found)


def total(found: tuple[Part, ...]) -> float:
    """The margin: the sum of its parts."""
    return round(sum(part.share for part in found), 4)


def text(found: tuple[Part, ...]) -> str:
    """The parts in words."""
    return ", ".join(f"{part.share:.1%} {part.reason}" for part in found)


def _version(text: str) -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
