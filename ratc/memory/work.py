"""The kernels of a traced step, as docs/reference/trace.md has them under `work`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Types of a kernel's computation. `tf32` is fp32 on tensor cores.
TYPES = ("bf16", "fp16", "tf32", "fp32", "fp64", "other")
#: More than any step has: launches, and operations or bytes of a launch.
LARGEST = 1e24
#: Kernels of a trace, at most; a step of a thousand layers has some hundred that differ.
MOST = 200_000


@dataclass(frozen=True, slots=True)
class Kernel:
    """Launches of one kernel. ``operations`` (floating-point) and ``bytes_`` are those of a launch, as (fixed, per
    sample).

    A kernel is ``regular`` if its threads read neighbouring bytes together. ``phase`` is an index into the trace's.
    """

    operator: str
    type: str
    regular: bool
    phase: int
    launches: int
    operations: tuple[float, float]
    bytes_: tuple[float, float]

    def sizes(self, micro_batch: int) -> tuple[float, float]:
        """Floating-point operations and bytes of a launch at a micro-batch."""
        operations, bytes_ = (max(0.0, fixed + slope * micro_batch) for fixed, slope in (self.operations, self.bytes_))
        return operations, bytes_


def read(rows: Any, phases: int) -> tuple[Kernel, ...]:
    """Return the kernels of a trace with ``phases`` phases. Raises ValueError or TypeError for a malformed row."""
    if not isinstance(rows, list) or len(rows) > MOST:
        raise ValueError("`work` is not a list of kernels")
    return tuple(_kernel(row, phases) for row in rows)


def _kernel(row: Sequence[Any], phases: int) -> Kernel:
    operator, kind, regular, phase, launches, *sizes = row
    fixed, slope, bytes_fixed, bytes_slope = map(float, sizes)
    if kind not in TYPES or phase not in range(phases) or not 0 < launches <= LARGEST:
        raise ValueError(f"kernel {str(row)[:80]}")
    if not all(math.isfinite(size) and abs(size) <= LARGEST for size in (fixed, slope, bytes_fixed, bytes_slope)):
        raise ValueError(f"kernel {str(row)[:80]}")
    return Kernel(
        str(operator), kind, bool(regular), int(phase), int(launches), (fixed, slope), (bytes_fixed, bytes_slope)
    )
