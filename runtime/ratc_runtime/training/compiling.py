"""Support for torch's compiler: a folder for its cache, and a clock for the compile time.

Kernels are compiled for `training.compile` and for fused attention. They are kept in the output folder, so that a job
requeued on another node finds them. The time counts as set-up, not as a slow first step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from ratc_runtime.config.lock import Lock

#: The folder of kernels in the output folder.
FOLDER = "kernels"
#: The variables of torch's compiler and of Triton, which makes its kernels, with their folders.
VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}

#: The variables that disable torch's compiler.
DISABLES = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")


def is_used(lock: Lock) -> bool:
    """Return whether a run of the lock compiles anything."""
    return lock.training.compile or lock.model.attention_memory == "fused"


def switched_off(lock: Lock, environment: Mapping[str, str]) -> list[str]:
    """Return the environment variables that disable the compiler, if a run of the lock uses it."""
    return [name for name in DISABLES if environment.get(name) == "1"] if is_used(lock) else []


def prepare(lock: Lock, output_dir: Path, environment: MutableMapping[str, str]) -> None:
    """Set the cache folders, unless the environment sets others. torch reads the variables at its first compilation."""
    if is_used(lock):
        for name, folder in VARIABLES.items():
            environment.setdefault(name, str((output_dir / FOLDER / folder).absolute()))


class Clock:
    """The total seconds that this process has spent compiling, from torch's callbacks at each start and end."""

    def __init__(self, lock: Lock) -> None:
        self._seconds, self._began = 0.0, 0.0
        if is_used(lock):
            from torch._dynamo import callback

            callback.on_compile_start(self._start)
            callback.on_compile_end(self._end)

    def __call__(self) -> float:
        """Return the seconds so far."""
        return self._seconds

    def _start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self._seconds += time.perf_counter() - self._began
