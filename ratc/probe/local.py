"""The hardware of this machine: GPUs from NVML, cores and memory from the operating system."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from ratc.facts import Card, Machine, describe_card, find_card


def machine(environment: Mapping[str, str]) -> Machine:
    """Return the GPUs that CUDA shows a process here, the cores it may run on, and the memory in bytes.

    Without a driver there are no GPUs; nor with one that fails, which the source then says. Of several kinds of cards,
    those like the first count. A slice of a card (MIG) is a card of its own, with its own memory, and counts once: CUDA
    shows a process one slice.
    """
    import pynvml  # here: a tenth of the time of a whole compile

    source = "this machine"
    try:
        gpus, card = _gpus(environment.get("CUDA_VISIBLE_DEVICES"))
    except pynvml.NVMLError as error:
        gpus, card, source = 0, None, f"this machine, whose NVIDIA driver fails: {error}"
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(gpus, card, cores, memory, source)


def _gpus(visible: str | None) -> tuple[int, Card | None]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return 0, None
    try:
        whole = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        # Each with the card that it is or lies on, which alone knows the compute capability.
        devices = [(one, card) for card in whole for one in _devices(card)]
        if visible is not None:
            uuids = [_text(pynvml.nvmlDeviceGetUUID(one)) for one, _ in devices]
            devices = [devices[index] for index in _visible(visible, uuids)]
        cards = [_card(one, card) for one, card in devices]
        sliced = bool(devices) and devices[0][0] is not devices[0][1]
    finally:
        pynvml.nvmlShutdown()
    if not cards:
        return 0, None
    return 1 if sliced else sum(card == cards[0] for card in cards), cards[0]


def _devices(card: object) -> list[object]:
    """Return the devices of a card that CUDA could show: itself, or in MIG mode its slices, possibly none."""
    import pynvml

    try:
        if pynvml.nvmlDeviceGetMigMode(card)[0] != 1:
            return [card]
        most = pynvml.nvmlDeviceGetMaxMigDeviceCount(card)
    except pynvml.NVMLError:  # a card or a driver without MIG
        return [card]
    found: list[object] = []
    for number in range(most):
        with suppress(pynvml.NVMLError):  # there is no slice of that number
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number))
    return found


def _visible(text: str, uuids: list[str]) -> list[int]:
    """Return the devices in CUDA_VISIBLE_DEVICES, up to the first invalid entry, as CUDA does."""
    chosen: list[int] = []
    for entry in (part.strip() for part in text.split(",")):
        if entry.isdigit():
            named = [int(entry)] if int(entry) < len(uuids) else []
        else:
            named = [index for index, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if len(named) != 1:
            break
        chosen += named
    return chosen


def _card(handle: object, whole: object) -> Card:
    import pynvml

    name = _text(pynvml.nvmlDeviceGetName(handle))
    memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(whole)
    found = find_card(name)
    if isinstance(found, Card):
        # The driver's figure for this very card beats the catalogue's.
        return replace(found, memory_bytes=memory)
    return describe_card(name, memory, f"{major}.{minor}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
