"""The state of a node's cards by NVML: memory errors, and clocks that heat or power hold down.

Sources: NVML API reference, "ECC", "Row remapper" and "Clocks event reasons"; NVIDIA GPU Memory Error Management: a
card with an uncontained error or a pending remap has to be reset before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ratc_runtime.checks.card import visible_handles
from ratc_runtime.health.report import Device, clipped

#: `nvmlMemoryErrorType_t` and `nvmlEccCounterType_t` (nvml.h): uncorrected errors since the driver was loaded.
_UNCORRECTED, _VOLATILE = 1, 0
#: `nvmlClocksEventReason…` (nvml.h). `HwSlowdown` comes with each of the two others. A software power cap is not a
#: fault: every card under load has it.
_HARD = {0x40: "the hardware slows it down for heat", 0x80: "the power supply slows it down (power brake)"}
_HW_SLOWDOWN, _SW_THERMAL = 0x8, 0x20


def states(environment: Mapping[str, str], most: int) -> list[Device]:
    """Return the state of the first `most` visible cards, without rates. A value that a card does not have is left out.

    Raises pynvml's own errors without a driver.
    """
    import pynvml

    pynvml.nvmlInit()
    try:
        handles = visible_handles(pynvml, environment)[:most]
        return [_state(pynvml, index, card) for index, (_, card) in enumerate(handles)]
    finally:
        pynvml.nvmlShutdown()


def _state(pynvml: Any, index: int, handle: Any) -> Device:
    def ask(name: str, *arguments: int) -> Any:
        """Return NVML's answer; None if this card, its driver or these bindings have none."""
        function: Callable[..., Any] | None = getattr(pynvml, name, None)
        try:
            return None if function is None else function(handle, *arguments)
        except Exception:  # NVML raises its own hierarchy: not supported, no permission
            return None

    problems, doubts = [], []
    errors = ask("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE)
    if errors:
        problems.append(f"{errors} uncorrected memory errors (ECC) since the driver was loaded")
    _, _, pending, failed = ask("nvmlDeviceGetRemappedRows") or (0, 0, 0, 0)
    if failed:
        problems.append("remapping a damaged row of its memory has failed")
    elif pending:
        problems.append("a damaged row of its memory waits to be remapped, which needs a reset")
    if ask("nvmlDeviceGetRetiredPagesPendingStatus"):
        problems.append("a damaged page of its memory waits to be retired, which needs a reset")
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:  # its name before driver 535
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    hard = [words for bit, words in _HARD.items() if (reasons or 0) & bit]
    if not hard and (reasons or 0) & _HW_SLOWDOWN:
        hard = ["the hardware slows it down"]
    temperature = ask("nvmlDeviceGetTemperature", 0)
    at = f", at {temperature} °C" if temperature else ""
    problems += [f"{words}{at}" for words in hard]
    if not hard and (reasons or 0) & _SW_THERMAL:
        doubts.append(f"the driver slows it down for heat{at}")
    return Device(index=index, problems=[clipped(one) for one in problems], doubts=[clipped(one) for one in doubts])
