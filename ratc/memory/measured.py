"""Measured training steps (`measured` in a facts file): their conditions, and the micro-batch that follows from one.

Pure arithmetic: memory is a line through the two sizes that were measured, so that no model needs to be traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ratc.catalog.alloc_conf import NATIVE
from ratc.memory.choose import Choice
from ratc.memory.estimate import Breakdown, Estimate
from ratc.memory.margin import Part
from ratc.memory.request import which
from ratc.memory.terms import Device, Term, nccl
from ratc.memory.zero import Strategy

#: Share of the budget kept free beyond the line through two measured points. Chosen, not measured: the allocator takes
#: memory in steps, which are not on the line.
MARGIN = 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """Peaks at one micro-batch size, in bytes, and the throughput of one process in samples a second."""

    micro_batch: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    device_used_bytes: int
    samples_per_second: float


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of a measurement. ``step`` is the digest of all conditions without a field here."""

    step: str
    card: str
    precision: str
    image_size: tuple[int, ...]
    attention_memory: str
    activation_checkpointing: bool | tuple[str, ...]
    engine: str
    allocator: str = NATIVE


@dataclass(frozen=True, slots=True)
class Measurement:
    """One entry. ``outside_bytes`` is in use outside the allocator, ``device_total_bytes`` is CUDA's total memory."""

    name: str
    conditions: Conditions
    points: tuple[Point, ...]
    outside_bytes: int
    device_total_bytes: int
    gradient_bytes: int
    torch: str
    driver: str | None
    date: str

    @property
    def source(self) -> str:
        """The date and the version of torch of the measurement, in words."""
        return f"measured on {self.date} with torch {self.torch}"


_CONDITIONS = tuple(Conditions.__dataclass_fields__)
_OTHERS = ("name", "outside_bytes", "device_total_bytes", "gradient_bytes", "torch", "driver", "date")


def read(entry: Mapping[str, Any]) -> Measurement:
    """Return the measurement in an entry of a facts file. The schema has checked it."""
    known = {key: entry[key] for key in _CONDITIONS if key != "image_size" and key in entry}
    points = sorted((Point(**point) for point in entry["points"]), key=lambda point: point.micro_batch)
    others: dict[str, Any] = {key: entry.get(key) for key in _OTHERS}
    known["activation_checkpointing"] = which(known["activation_checkpointing"])
    return Measurement(
        conditions=Conditions(image_size=tuple(entry["image_size"]), **known), points=tuple(points), **others
    )


def entry(measurement: Measurement) -> dict[str, Any]:
    """Return the entry of a measurement in a facts file: the inverse of `read`."""
    conditions = asdict(measurement.conditions)
    for key, value in conditions.items():
        conditions[key] = list(value) if isinstance(value, tuple) else value
    if conditions["allocator"] == NATIVE:
        del conditions["allocator"]
    return {
        "name": measurement.name,
        **conditions,
        "points": [asdict(point) for point in measurement.points],
        **{key: getattr(measurement, key) for key in _OTHERS if key != "name"},
    }


def differences(found: Conditions, wanted: Conditions) -> list[str]:
    """Why a measurement is not of the wanted step, one phrase each; nothing if it is."""
    said = []
    for key in _CONDITIONS:
        has, wants = getattr(found, key), getattr(wanted, key)
        if has == wants:
            continue
        if key == "step":
            said.append("it is of another model, code, loss or optimizer, or of other channels or classes")
        else:
            said.append(f"{key.replace('_', ' ')} {_shown(has)}, the step has {_shown(wants)}")
    return said


def nearest(measurements: Sequence[Measurement], wanted: Conditions) -> tuple[Measurement, list[str]]:
    """The measurement with the fewest differences, and those; the first of several."""
    pairs = [(one, differences(one.conditions, wanted)) for one in measurements]
    return min(pairs, key=lambda pair: len(pair[1]))


def at(measurement: Measurement, micro_batch: int, key: str) -> int | None:
    """Return the bytes at a micro-batch size, rounded up, on the line through the first and the last point; ``key`` is
    a field of `Point`. None above a single point: nothing is known there.

    A line that falls counts as level.
    """
    points = measurement.points
    first, last = points[0], points[-1]
    for point in points:
        if point.micro_batch == micro_batch:
            return int(getattr(point, key))
    if first.micro_batch == last.micro_batch:
        return int(getattr(first, key)) if micro_batch < first.micro_batch else None
    low, high = int(getattr(first, key)), int(getattr(last, key))
    rise = max(0, high - low)
    # Rounded up: the line is a need.
    on_line = low - (-(rise * (micro_batch - first.micro_batch)) // (last.micro_batch - first.micro_batch))
    return max(0, on_line)


def choose(
    measurement: Measurement, share: int, device: Device, strategy: Strategy, margin: float = MARGIN
) -> Choice | None:
    """Return the largest divisor of a rank's ``share`` (samples) that fits by the measurement, at the card's cap less
    the ``margin`` (a fraction); None if there is none.

    With several processes, each also holds its gradients a second time, in DDP's buckets, and NCCL's channels.
    """
    divisors = [size for size in range(share, 0, -1) if share % size == 0]
    above: Estimate | None = None
    for size in divisors:
        found = estimate(measurement, size, device, strategy, margin)
        if found is None:
            continue
        if found.fits:
            return Choice(found, share // size, Breakdown({}, {}, {}), above)
        above = found
    return None


def estimate(
    measurement: Measurement, micro_batch: int, device: Device, strategy: Strategy, margin: float = MARGIN
) -> Estimate | None:
    """Return the estimate of a micro-batch from the measurement; None if it does not reach so far."""
    several = strategy.world_size > 1
    buckets = measurement.gradient_bytes if several else 0
    allocated = at(measurement, micro_batch, "peak_allocated_bytes")
    reserved = at(measurement, micro_batch, "peak_reserved_bytes")
    if allocated is None or reserved is None:
        return None
    kept = max(0, device.memory_bytes - measurement.device_total_bytes)
    terms = [
        Term("kept by the driver", kept, measurement.source),
        Term("beside the allocator", measurement.outside_bytes, measurement.source),
        *([nccl(device, strategy.process_groups)] if several else []),
    ]
    budget = device.memory_bytes - sum(term.bytes_ for term in terms)
    cap = max(0, int(budget * (1 - margin)))
    return Estimate(
        device,
        strategy,
        micro_batch,
        reserved + buckets <= cap,
        allocated + buckets,
        reserved + buckets,
        budget,
        cap,
        margin,
        (Part(margin, "uncertainty from only two measured points"),),
        tuple(terms),
        0,
        0,
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return (" x " if isinstance(value[0], int) else ", ").join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
