"""The visible cards of this node beside those of the lock, by NVML; torch is not imported."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ratc_runtime.config.lock import Lock
from ratc_runtime.config.program_lock import ProgramLock
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.sizes import counted

# Drivers report less than the nominal memory (ECC, reserved pages): a T4 of 16 GiB shows 15.0. Cards of one
# name differ by half or more (V100 16/32, A100 40/80), so a tenth tells them apart and lets the driver be.
MEMORY_TOLERANCE = 0.1


def check_card(lock: Lock | ProgramLock, environment: Mapping[str, str]) -> None:
    """Raise R504 unless this node's visible cards are those of the lock. There is no check for the CPU."""
    hardware = lock.hardware
    if hardware.device != "cuda":
        return
    needed = lock.parallel.processes_per_node
    cards = _visible_cards(environment)
    if cards is None:
        return
    if len(cards) < needed:
        raise RuntimeFinding(
            "R504",
            f"the lock needs {counted(needed, 'card')} on this node, {len(cards)} are visible",
            f"CUDA_VISIBLE_DEVICES={environment.get('CUDA_VISIBLE_DEVICES', '(not set)')}",
            "ask the scheduler for the cards of the lock, or compile the spec for the visible cards",
        )
    if needed > 1 and any(is_slice for *_, is_slice in cards[:needed]):
        raise RuntimeFinding(
            "R504",
            f"the lock needs {needed} cards on this node, but CUDA shows a process at most one slice of a card (MIG)",
            f"visible: {', '.join(name for name, *_ in cards[:needed])}",
            "compile for one GPU, with the memory of a slice; or ask for whole cards",
        )
    for index, (name, capability, memory, _) in enumerate(cards[:needed]):
        if hardware.compute_capability is not None and capability != hardware.compute_capability:
            raise RuntimeFinding(
                "R504",
                f"card {index} ({name}) has compute capability {capability}, the lock {hardware.compute_capability}",
                f"the lock was compiled for {hardware.card or 'another card'}",
                "run on the card of the lock, or compile for this one",
            )
        if hardware.memory_bytes is not None and memory < hardware.memory_bytes * (1 - MEMORY_TOLERANCE):
            raise RuntimeFinding(
                "R504",
                f"card {index} ({name}) has {memory / 2**30:.1f} GiB, the lock {hardware.memory_bytes / 2**30:.1f}",
                f"the lock was compiled for {hardware.card or 'another card'}",
                "run on the card of the lock, or compile for this one",
            )


def _visible_cards(environment: Mapping[str, str]) -> list[tuple[str, str, int, bool]] | None:
    """Return (name, compute capability, bytes, is a slice) per visible card; None for AMD, which has no NVML.

    Raises R504 without an NVIDIA driver.
    """
    if Path("/dev/kfd").exists():
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # NVML raises its own hierarchy, and the module itself may be missing
        raise RuntimeFinding(
            "R504",
            "the lock says cuda, and this machine has no NVIDIA driver",
            f"{type(error).__name__}: {error}",
            "run on a machine with the lock's card, or compile for the CPU",
        ) from None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        # Of a slice the card knows the compute capability.
        whole = [(one, handle) for handle in handles for one in _devices(pynvml, handle)]
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            whole = select(whole, [pynvml.nvmlDeviceGetUUID(handle) for handle, _ in whole], visible)
        cards = []
        for handle, card in whole:
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(card)
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            cards.append((str(pynvml.nvmlDeviceGetName(handle)), f"{major}.{minor}", memory, handle is not card))
        return cards
    finally:
        pynvml.nvmlShutdown()


def _devices(pynvml: Any, card: Any) -> list[Any]:
    """Return the devices that CUDA could show for a card: the card, or in MIG mode its slices, possibly none."""
    try:
        if pynvml.nvmlDeviceGetMigMode(card)[0] != 1:
            return [card]
        most = pynvml.nvmlDeviceGetMaxMigDeviceCount(card)
    except Exception:  # NVML's own hierarchy: a card or a driver without MIG
        return [card]
    found: list[Any] = []
    for number in range(most):
        with contextlib.suppress(Exception):  # there is no slice of that number
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number))
    return found


def select(handles: list[Any], uuids: list[Any], visible: str) -> list[Any]:
    """Select handles as CUDA does: by index or by the start of the UUID, up to the first invalid entry."""
    chosen = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit() and int(entry) < len(handles):
            chosen.append(handles[int(entry)])
            continue
        matching = [
            handle
            for handle, uuid in zip(handles, uuids, strict=True)
            if entry and (uuid.decode() if isinstance(uuid, bytes) else uuid).startswith(entry)
        ]
        if len(matching) != 1:
            break
        chosen.append(matching[0])
    return chosen
