"""The measured memory of a run, compared with the lock's prediction."""

from __future__ import annotations

import dataclasses
import resource
import sys
from dataclasses import dataclass
from typing import Any

import torch

from ratc_runtime.config.lock import Lock
from ratc_runtime.config.program_lock import ProgramLock
from ratc_runtime.distributed.world import World
from ratc_runtime.output.sizes import size_text

GIB = 2**30


@dataclass(frozen=True)
class Prediction:
    """The compiler's prediction for one device, in bytes; `margin` is the stated relative error, 0.05 for 5 %."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    margin: float


def predicted(lock: Lock | ProgramLock) -> Prediction | None:
    """Return the lock's prediction, if it holds one."""
    memory = lock.memory
    if memory is None:
        return None
    allocated, reserved, margin = memory.peak_allocated_bytes, memory.peak_reserved_bytes, memory.margin
    return None if allocated is None or reserved is None or margin is None else Prediction(allocated, reserved, margin)


@dataclass(frozen=True)
class MemoryUse:
    """The maximum over all ranks, in bytes.

    On `cuda`: the peaks allocated by tensors and reserved by torch's allocator, and the current use of the whole device
    (with CUDA's context and other processes), out of `device_total_bytes`. On `cpu`: only the process's peak resident
    set, including libraries and data, because there is no such allocator.
    """

    device: str
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    device_used_bytes: int | None = None
    device_total_bytes: int | None = None
    peak_rss_bytes: int | None = None


def start_measuring(device: torch.device) -> None:
    """Reset the device's peaks, so that `measure` covers only later use. A CPU process cannot reset its peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def measure(world: World) -> MemoryUse:
    """Return the maxima over all ranks. Every rank calls this."""
    parts = world.gather(_measure(world.device))
    names = [field.name for field in dataclasses.fields(MemoryUse) if field.name != "device"]
    known = {name: [getattr(part, name) for part in parts if getattr(part, name) is not None] for name in names}
    return MemoryUse(world.device.type, **{name: max(values, default=None) for name, values in known.items()})


def _measure(device: torch.device) -> MemoryUse:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return MemoryUse(
            "cuda",
            torch.cuda.max_memory_allocated(device),
            torch.cuda.max_memory_reserved(device),
            total - free,
            total,
        )
    # getrusage(2): kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return MemoryUse("cpu", peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def record(use: MemoryUse, prediction: Prediction | None, samples_per_second: float | None = None) -> dict[str, Any]:
    """Return the entry for results.json: `memory` in bytes, the prediction and the ratio to it."""
    facts: dict[str, Any] = {key: value for key, value in dataclasses.asdict(use).items() if value is not None}
    if samples_per_second is not None:
        facts["samples_per_second"] = samples_per_second
    if prediction is not None:
        facts["predicted"] = dataclasses.asdict(prediction)
        if use.peak_reserved_bytes is not None:
            ratio = use.peak_reserved_bytes / prediction.peak_reserved_bytes
            facts |= {"measured_to_predicted": ratio, "deviation": ratio - 1}
    return facts


def allocated(device: torch.device) -> dict[str, float]:
    """Return the device's currently allocated and reserved memory in GiB, as metrics; nothing on the CPU. Does not
    wait.
    """
    if device.type != "cuda":
        return {}
    return {
        "memory/allocated_gib": torch.cuda.memory_allocated(device) / GIB,
        "memory/reserved_gib": torch.cuda.memory_reserved(device) / GIB,
    }


def metrics(use: MemoryUse) -> dict[str, float | None]:
    """Return the peaks as metrics for a tracker, in GiB."""
    named = {
        "memory/peak_allocated_gib": use.peak_allocated_bytes,
        "memory/peak_reserved_gib": use.peak_reserved_bytes,
        "memory/device_used_gib": use.device_used_bytes,
        "memory/peak_rss_gib": use.peak_rss_bytes,
    }
    return {name: value / GIB for name, value in named.items() if value is not None}


def describe(use: MemoryUse, prediction: Prediction | None) -> str:
    """Return one line for the log."""
    if use.peak_reserved_bytes is None or use.peak_allocated_bytes is None:
        return f"peak memory of a process {_size(use.peak_rss_bytes)} (resident set, with libraries and data)"
    text = f"peak memory {_size(use.peak_allocated_bytes)} allocated, {_size(use.peak_reserved_bytes)} reserved"
    if prediction is not None:
        off = use.peak_reserved_bytes / prediction.peak_reserved_bytes - 1
        allocated, reserved = _size(prediction.peak_allocated_bytes), _size(prediction.peak_reserved_bytes)
        text += f"; predicted {allocated}, {reserved} ({off:+.1%})"
    return f"{text}; {_size(use.device_used_bytes)} of the device's {_size(use.device_total_bytes)} in use"


def deviation(use: MemoryUse, prediction: Prediction | None) -> str | None:
    """Return a warning if a peak differs from the prediction by more than its margin; None on the CPU.

    Peaks of the caching allocator are compared. The resident set of a CPU process is not comparable.
    """
    if prediction is None:
        return None
    pairs = {
        "reserved": (use.peak_reserved_bytes, prediction.peak_reserved_bytes),
        "allocated": (use.peak_allocated_bytes, prediction.peak_allocated_bytes),
    }
    for name, (found, expected) in pairs.items():
        if found is not None and abs(found - expected) > prediction.margin * expected:
            return (
                f"peak {name} memory was {_size(found)}, predicted {_size(expected)}: {found / expected - 1:+.1%},"
                f" more than the stated {prediction.margin:.1%}"
            )
    return None


def _size(size: int | None) -> str:
    return "unknown" if size is None else size_text(size)
