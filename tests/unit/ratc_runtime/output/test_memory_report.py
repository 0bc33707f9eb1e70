"""The memory that a run records, compared with the prediction of its lock."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from ratc_runtime.distributed.world import World
from ratc_runtime.output import memory_report
from ratc_runtime.output.memory_report import GIB, MemoryUse, Prediction

ALONE = World(0, 1, torch.device("cpu"))
PREDICTION = Prediction(10 * GIB, 12 * GIB, 0.05)


def on_a_card(allocated: float, reserved: float) -> MemoryUse:
    return MemoryUse("cuda", int(allocated * GIB), int(reserved * GIB), 14 * GIB, 24 * GIB)


def test_a_cpu_run_reports_its_resident_set() -> None:
    memory_report.start_measuring(ALONE.device)
    before = memory_report.measure(ALONE)
    held = torch.ones(200 * 2**20, dtype=torch.uint8)
    after = memory_report.measure(ALONE)
    assert before.device == "cpu"
    assert before.peak_allocated_bytes is None
    assert before.peak_rss_bytes is not None
    assert after.peak_rss_bytes is not None
    # Peaks only grow, and this process may have been larger before.
    statm = Path("/proc/self/statm")
    if statm.exists():
        resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert held.numel() < resident <= after.peak_rss_bytes * 1.01
    assert "resident set" in memory_report.describe(after, PREDICTION)
    assert memory_report.deviation(after, PREDICTION) is None
    facts = memory_report.record(after, PREDICTION, 2.5)
    assert "measured_to_predicted" not in facts
    assert facts["samples_per_second"] == 2.5
    assert memory_report.metrics(after) == {"memory/peak_rss_gib": after.peak_rss_bytes / GIB}


def test_the_report_holds_the_card_s_memory_and_the_prediction() -> None:
    use = on_a_card(10.2, 12.3)
    facts = json.loads(json.dumps(memory_report.record(use, PREDICTION, 31.5)))
    assert facts["peak_reserved_bytes"] == int(12.3 * GIB)
    assert facts["predicted"] == {"peak_allocated_bytes": 10 * GIB, "peak_reserved_bytes": 12 * GIB, "margin": 0.05}
    assert facts["measured_to_predicted"] == pytest.approx(1.025)
    assert "predicted" not in memory_report.record(use, None, 31.5)
    assert set(memory_report.metrics(use)) == {
        f"memory/{name}" for name in ("peak_allocated_gib", "peak_reserved_gib", "device_used_gib")
    }
    assert memory_report.describe(use, PREDICTION) == (
        "peak memory 10.20 GiB allocated, 12.30 GiB reserved; predicted 10.00 GiB, 12.00 GiB (+2.5%);"
        " 14.00 GiB of the device's 24.00 GiB in use"
    )


@pytest.mark.parametrize(
    ("allocated", "reserved", "said"),
    [
        (10.0, 12.0, None),
        (10.4, 12.5, None),
        (9.6, 11.5, None),
        (10.0, 13.2, "reserved memory was 13.20 GiB, predicted 12.00 GiB: +10.0%, more than the stated 5.0%"),
        (10.0, 10.8, "reserved memory was 10.80 GiB, predicted 12.00 GiB: -10.0%"),
        (11.0, 12.0, "allocated memory was 11.00 GiB, predicted 10.00 GiB: +10.0%"),
    ],
)
def test_a_deviation_beyond_the_margin_gives_a_warning(allocated: float, reserved: float, said: str | None) -> None:
    found = memory_report.deviation(on_a_card(allocated, reserved), PREDICTION)
    assert (found is None) if said is None else said in str(found)
    assert memory_report.deviation(on_a_card(allocated, reserved), None) is None


def test_the_report_holds_the_maximum_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: torch.cuda's counters are stood in for, on two ranks of which the second used more."""
    values = {"max_memory_allocated": 5, "max_memory_reserved": 7, "mem_get_info": (30, 100)}
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    gathered = lambda self, value: [value, MemoryUse("cuda", 6, 6, 80, 100)]  # noqa: E731
    monkeypatch.setattr(World, "gather", gathered)
    assert memory_report.measure(World(0, 2, torch.device("cuda", 0))) == MemoryUse("cuda", 6, 7, 80, 100)
