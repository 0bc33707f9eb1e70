"""The calls of torch.cuda for measurements, which need a GPU. Sizes in bytes, times in seconds."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Peaks:
    """The peaks since `forget`: allocated by tensors, and reserved by the caching allocator. Then the current values:
    memory used on the device, the part of it outside this process's allocator, and the device's total memory.
    """

    allocated: int
    reserved: int
    used: int
    outside: int
    total: int


def name(device: torch.device) -> str:
    """Return the card's name as reported by the driver."""
    return torch.cuda.get_device_name(device)


def capability(device: torch.device) -> str:
    """Return the compute capability, as in 9.0."""
    return ".".join(str(part) for part in torch.cuda.get_device_capability(device))


def driver() -> str | None:
    """Return the version of NVIDIA's driver, from its kernel module; None if there is none."""
    try:
        found = re.search(r"\d{3,}\.\d[\d.]*", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found[0] if found else None


def forget(device: torch.device) -> None:
    """Free cached memory and reset the peaks."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def clock(device: torch.device) -> float:
    """Return the host's time in seconds, after the device has finished all its work."""
    torch.cuda.synchronize(device)
    return time.perf_counter()


def peaks(device: torch.device) -> Peaks:
    """Return the peaks since `forget`."""
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return Peaks(
        torch.cuda.max_memory_allocated(device),
        torch.cuda.max_memory_reserved(device),
        total - free,
        max(0, total - free - torch.cuda.memory_reserved(device)),
        total,
    )
