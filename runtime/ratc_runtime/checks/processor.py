"""The processor of this node beside that of the lock."""

from __future__ import annotations

import platform

from ratc_runtime.config.lock import Lock
from ratc_runtime.config.program_lock import ProgramLock
from ratc_runtime.errors import RuntimeFinding


def check_processor(lock: Lock | ProgramLock) -> None:
    """Raise R504 if the lock names a processor and this node has another one."""
    wanted, here = lock.hardware.cpu_architecture, platform.machine()
    if wanted is not None and here != wanted:
        raise RuntimeFinding(
            "R504",
            f"the processor of this node is {here}, that of the lock {wanted}",
            f"the lock was compiled for {lock.hardware.card or 'such nodes'}",
            "ask the scheduler for the nodes of the lock, or correct `cpu_architecture` in the cluster's facts",
        )
