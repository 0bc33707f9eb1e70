"""The state of cards, read from a stand-in for pynvml."""

from __future__ import annotations

import sys
import types

import pytest
from ratc_runtime.health import cards


def fake(count: int = 1, **answers: object) -> types.ModuleType:
    """A pynvml of healthy cards; an answer is by the name of its function, for the last card."""
    module = types.ModuleType("pynvml")
    usual: dict[str, object] = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": count,
        "nvmlDeviceGetTotalEccErrors": 0,
        "nvmlDeviceGetRemappedRows": (3, 1, 0, 0),
        "nvmlDeviceGetRetiredPagesPendingStatus": 0,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
        "nvmlDeviceGetTemperature": 88,
    }

    def answer(name: str, *arguments: object) -> object:
        last = bool(arguments) and arguments[0] == count - 1
        found = answers[name] if name in answers and last else usual[name]
        if isinstance(found, Exception):
            raise found
        return found

    for name in {**usual, **answers}:
        setattr(module, name, lambda *arguments, name=name: answer(name, *arguments))
    module.nvmlDeviceGetHandleByIndex = lambda index: index  # type: ignore[attr-defined]
    module.nvmlDeviceGetMigMode = lambda handle: (0, 0)  # type: ignore[attr-defined]
    module.nvmlDeviceGetUUID = lambda handle: f"GPU-{handle}"  # type: ignore[attr-defined]
    return module


CASES = [
    ("nvmlDeviceGetTotalEccErrors", 7, "7 uncorrected memory errors (ECC) since the driver was loaded"),
    (
        "nvmlDeviceGetRemappedRows",
        (0, 1, 1, 0),
        "a damaged row of its memory waits to be remapped, which needs a reset",
    ),
    ("nvmlDeviceGetRemappedRows", (0, 9, 1, 1), "remapping a damaged row of its memory has failed"),
    (
        "nvmlDeviceGetRetiredPagesPendingStatus",
        1,
        "a damaged page of its memory waits to be retired, which needs a reset",
    ),
    ("nvmlDeviceGetCurrentClocksEventReasons", 0x48, "the hardware slows it down for heat, at 88 °C"),
    ("nvmlDeviceGetCurrentClocksEventReasons", 0x88, "the power supply slows it down (power brake), at 88 °C"),
    ("nvmlDeviceGetCurrentClocksEventReasons", 0x8, "the hardware slows it down, at 88 °C"),
]


@pytest.mark.parametrize(("name", "answer", "problem"), CASES)
def test_a_hardware_fault_of_a_card_is_a_problem(
    name: str, answer: object, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake(2, **{name: answer}))
    first, second = cards.states({}, 8)
    assert (first.problems, first.doubts) == ([], [])
    assert second.problems == [problem]


def test_a_throttled_card_is_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake(nvmlDeviceGetCurrentClocksEventReasons=0x24))
    (card,) = cards.states({}, 8)
    assert (card.problems, card.doubts) == ([], ["the driver slows it down for heat, at 88 °C"])


def test_a_card_without_ecc_and_an_old_driver_are_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake(
        nvmlDeviceGetTotalEccErrors=RuntimeError("not supported"), nvmlDeviceGetRemappedRows=RuntimeError("no")
    )
    del module.nvmlDeviceGetCurrentClocksEventReasons
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x40  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    (card,) = cards.states({}, 8)
    assert card.problems == ["the hardware slows it down for heat, at 88 °C"]


def test_only_visible_cards_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake(4, nvmlDeviceGetTotalEccErrors=7))
    assert [bool(card.problems) for card in cards.states({"CUDA_VISIBLE_DEVICES": "3,0"}, 2)] == [True, False]
    assert [bool(card.problems) for card in cards.states({}, 2)] == [False, False]
