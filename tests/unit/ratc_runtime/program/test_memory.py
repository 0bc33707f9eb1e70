"""The memory of a program's run, beside the prediction of its lock. For two processes: tests/processes."""

from __future__ import annotations

from typing import Any

import pytest
from ratc_runtime.config.sections import Memory
from ratc_runtime.output import memory_report
from ratc_runtime.output.memory_report import MemoryUse

from tests.unit.ratc_runtime.integrations.conftest import make_plan  # noqa: F401  # the fixture is used by its name

GIB = 1 << 30
PREDICTED = {"peak_allocated_bytes": 10 * GIB, "peak_reserved_bytes": 12 * GIB, "margin": 0.05}


def on_a_card(monkeypatch: pytest.MonkeyPatch, reserved: int) -> MemoryUse:
    use = MemoryUse("cuda", 10 * GIB, reserved, 14 * GIB, 80 * GIB)
    monkeypatch.setattr(memory_report, "measure", lambda world: use)
    return use


def with_prediction(plan: Any) -> Any:
    plan.lock = plan.lock.replace(memory=Memory(**PREDICTED))
    return plan


def test_without_a_prediction_the_measured_memory_is_given(make_plan: Any, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    found = make_plan().memory()
    assert found["device"] == "cpu"
    assert found["peak_rss_bytes"] > 10 << 20
    assert found.keys() == {"device", "peak_rss_bytes"}
    assert capsys.readouterr().out.startswith("peak memory of a process ")


def test_with_a_prediction_both_are_compared(
    make_plan: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use = on_a_card(monkeypatch, 12 * GIB)
    found = with_prediction(make_plan()).memory()
    assert found["predicted"] == PREDICTED
    assert found["measured_to_predicted"] == 1.0
    assert found["peak_reserved_bytes"] == use.peak_reserved_bytes
    said = capsys.readouterr()
    assert "predicted 10.00 GiB, 12.00 GiB (+0.0%)" in said.out
    assert not said.err


def test_a_warning_says_if_they_differ_by_more_than_the_margin(
    make_plan: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    on_a_card(monkeypatch, 15 * GIB)
    found = with_prediction(make_plan()).memory()
    assert found["deviation"] == pytest.approx(0.25)
    assert "peak reserved memory was 15.00 GiB, predicted 12.00 GiB: +25.0%" in capsys.readouterr().err
