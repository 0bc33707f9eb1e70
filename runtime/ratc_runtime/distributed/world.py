"""The ranks of a run: this process's rank, and the collectives of the runtime."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed import watchdog
from ratc_runtime.distributed.phases import phase
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.sizes import counted

#: Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class World:
    """The place of this process among the ranks. With one process every collective is the identity."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True for rank 0, the process that prints and writes."""
        return self.rank == 0

    @phase("collective")
    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks of a tensor of any shape, on the CPU. Every rank calls this with the same shape."""
        if self.size == 1:
            watchdog.mark()
            return values.cpu()
        # A copy: the all-reduce writes into its argument.
        moved = values.detach().clone().to(self.device)
        dist.all_reduce(moved)
        total = moved.cpu()
        watchdog.mark()
        return total

    @phase("collective")
    def gather(self, value: Any) -> list[Any]:
        """Return every rank's object, in order of rank. Every rank calls this."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        watchdog.mark()
        return values

    @phase("collective")
    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()
            watchdog.mark()


def local_device(lock: Lock) -> torch.device:
    """Return the device of this process; raise R504 if the lock asks for cuda and torch has no such device."""
    if lock.hardware.device == "cpu":
        keep_freed_blocks()
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not torch.cuda.is_available() or local_rank >= torch.cuda.device_count():
        raise RuntimeFinding(
            "R504",
            f"the lock says cuda, and torch {torch.__version__} sees {counted(torch.cuda.device_count(), 'device')}",
            f"this process needs device {local_rank}",
            "install the CUDA build of torch, and ask the scheduler for the cards of the lock",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def keep_freed_blocks() -> None:
    """Make glibc keep freed blocks of up to 1 GiB for the next allocation, if that is the C library.

    By default it takes each block above 32 MiB from the kernel (mallopt(3), M_MMAP_THRESHOLD), which fills every page
    with zeros. With these values, as glibc's MALLOC_ variables, the brain example trained at 7.2 samples a second on
    two busy cores, and at 3.7 without, with the same losses (28 November 2026, glibc 2.36).
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def check_world(lock: Lock, size: int) -> None:
    """Raise R502 unless the process group has the lock's size.

    The launcher's variable is not enough: with the wrong variables each process trains alone, on all data.
    """
    if size != lock.parallel.world_size:
        raise RuntimeFinding(
            "R502",
            f"{size} process(es) found each other, the lock says {lock.parallel.world_size}",
            "the launcher and the engine use different settings to connect the processes",
            "start training with the compiled run.sh",
        )


def group_timeout(lock: Lock) -> timedelta | None:
    """Return the process group's timeout of a collective; None is the backend's default.

    It is a little longer than the watchdog's, which gives a better message, including its time for the first step.
    """
    seconds = watchdog.limit(lock, os.environ)
    return None if seconds is None else timedelta(seconds=max(seconds, watchdog.FIRST) + watchdog.GROUP_MARGIN)


@phase("collective")
def leave(status: int) -> None:
    """End this process with `status` if there is a process group; else return.

    A process group over gloo can abort while the interpreter shuts down, after everything is done. So the group is
    destroyed here, and the interpreter's shutdown is skipped.
    """
    if not dist.is_initialized():
        return
    if status == 0:
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
