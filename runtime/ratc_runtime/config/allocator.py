"""The settings of torch's CUDA allocator: those of the lock, those in environment variables, and those in effect.

A script compiled by ratc sets the variables. Torch's version decides which one is read, so all of them are checked.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from ratc_runtime.config.lock import Lock
from ratc_runtime.errors import RuntimeFinding, warn

if TYPE_CHECKING:
    import torch

#: The variables that torch reads; the last one with ROCm alone.
NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
EXPANDABLE = "expandable_segments"

_OPTION = re.compile(r"([^,:\[\]]+)(?::(\[[^\]]*\]|[^,\[\]]*))?(?:,|$)")
_HELP = "start training with the compiled script, which sets them, or unset them"


def settings(allocator: str) -> str:
    """Return the value of the variables for a lock's `training.allocator`."""
    return f"{EXPANDABLE}:{allocator == EXPANDABLE}"


def contradictions(lock: Lock, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables, with their values, that would give torch another allocator than the lock's."""
    asked = lock.training.allocator
    if asked is None or lock.hardware.device != "cuda":
        return {}
    return {
        name: environment[name] for name in NAMES if environment.get(name) and not _agrees(environment[name], asked)
    }


def _agrees(text: str, asked: str) -> bool:
    options = {match[1].strip(): (match[2] or "").strip() for match in _OPTION.finditer(text)}
    # A variable without this option hides another one that has it, and leaves native segments.
    wanted = str(asked == EXPANDABLE)
    return options.get(EXPANDABLE, "False") == wanted and options.get("backend", "native") == "native"


def warn_of_variables(lock: Lock, environment: Mapping[str, str]) -> None:
    """Warn of inherited variables that the script replaces by the lock's."""
    for name, text in contradictions(lock, environment).items():
        warn(f"{name}={text} is replaced: the lock says training.allocator: {lock.training.allocator}")


def check_variables(lock: Lock, environment: Mapping[str, str]) -> None:
    """Raise R552 if a variable sets another allocator than the lock. Called before torch is imported."""
    found = contradictions(lock, environment)
    if found:
        raise RuntimeFinding(
            "R552",
            f"the environment asks for another allocator than the lock's training.allocator: {lock.training.allocator}",
            "\n".join(f"{name}={text}" for name, text in found.items()),
            _HELP,
            everywhere=False,
        )


def prepare(lock: Lock, environment: MutableMapping[str, str]) -> None:
    """Set the variables that are not set, as the compiled script does.

    Torch reads them at its import or at the first use of CUDA, depending on its version. If your own program has
    imported it before, torch's own function is called, too.
    """
    if lock.training.allocator is None or lock.hardware.device != "cuda":
        return
    for name in NAMES[:2]:
        environment.setdefault(name, settings(lock.training.allocator))
    if "torch" in sys.modules:
        _pass_to_torch(environment[NAMES[1]])


def _pass_to_torch(text: str) -> None:
    """Pass the settings to torch by its own function. `check` does not rely on it, because it is private."""
    import torch

    setter = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    setter = setter or getattr(torch.cuda.memory, "_set_allocator_settings", None)
    if setter is not None and not torch.cuda.is_initialized():
        with contextlib.suppress(Exception):
            setter(text)


def check(lock: Lock, device: torch.device) -> None:
    """Raise R552 unless the allocator of this process is the lock's. There is no check on the CPU."""
    asked = lock.training.allocator
    if asked is None or device.type != "cuda":
        return
    used = in_use()
    if used is not None and used != asked:
        raise RuntimeFinding(
            "R552",
            f"torch's allocator already runs with {used}, the lock says training.allocator: {asked}",
            "torch reads the allocator's settings once, when CUDA is first used",
            f"{_HELP}; in a program of your own, set them before torch is imported",
            everywhere=False,
        )


def in_use() -> str | None:
    """Return the mode of torch's CUDA allocator in this process, or the name of another backend; None if this torch
    does not provide it.
    """
    import torch

    backend = torch.cuda.get_allocator_backend()
    if backend != "native":
        return str(backend)
    try:
        told: dict[str, Any] = torch.cuda.memory._snapshot().get("allocator_settings", {})
    except Exception:  # a private function, which may differ in a later torch
        return None
    if EXPANDABLE not in told:
        return None
    return EXPANDABLE if told[EXPANDABLE] else "native"
