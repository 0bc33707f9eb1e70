"""The memory that a program of the spec's own used, beside the prediction of its lock."""

from __future__ import annotations

from typing import Any

import torch

from ratc_runtime.config.program_lock import ProgramLock
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import say, warn
from ratc_runtime.output import memory_report


def device_of(lock: ProgramLock) -> torch.device:
    """Return the device of this process: the current card, or the CPU if the lock or the machine has none."""
    on_card = lock.hardware.device == "cuda" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_card else torch.device("cpu")


def compared(lock: ProgramLock) -> dict[str, Any]:
    """Return the entry `memory` of results.json, of all ranks, and say it on rank 0. Every rank calls this."""
    world = World(0, 1, device_of(lock))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), world.device)
    use, prediction = memory_report.measure(world), memory_report.predicted(lock)
    if world.main:
        say(memory_report.describe(use, prediction))
        if off := memory_report.deviation(use, prediction):
            warn(off)
    return memory_report.record(use, prediction)
