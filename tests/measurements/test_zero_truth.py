"""Predicted peaks of ZeRO and chunked attention, within 2 % of those that an H200 recorded."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.places import BENCHMARKS

sys.path[:0] = [str(BENCHMARKS / "memory")]

import gap  # noqa: E402
import replay  # noqa: E402

WITHIN = 0.02
ROWS = [
    pytest.param(row, id=f"{folder.name}-{row['name']}")
    for folder in replay.folders()
    for row in replay.load(folder)["rows"]
    if row.get("peak_reserved_bytes") and (row.get("zero_stage") is not None or "chunked" in row["name"])
]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_predicted_peaks_equal_the_measured_ones_within_two_percent(row: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    found = replay.predictor(row).unbounded(row["micro_batch"])
    assert found.peak_reserved_bytes == pytest.approx(row["peak_reserved_bytes"], rel=WITHIN)
    assert found.peak_allocated_bytes == pytest.approx(row["peak_allocated_bytes"], rel=WITHIN)


def stream(**more: Any) -> dict[str, Any]:
    """A recorded run of two steps without phases, as DeepSpeed's are."""
    events = [["a", 1024, 0, 0], ["s", 2048, 0, 0], ["a", 512, 1, 1], ["f", 512, 1, 1], ["a", 600, 1, 1]]
    marks = [["step 0", 1, 0], ["step 1", 2, 1]]
    return {"events": events, "frames": ["build.py", "step.py"], "marks": marks, "request": {}, "micro_batch": 1} | more


@pytest.mark.parametrize(
    ("part", "name", "live", "sizes"),
    [("build", "build", 0, [1024]), ("first", "step", 1024, [512, 512]), ("last", "step", 1024, [600])],
)
def test_a_stream_without_phases_is_split_into_parts(part: str, name: str, live: int, sizes: list[int]) -> None:
    (phase,) = gap.recorded(stream(), part)
    assert (phase.name, phase.live) == (name, live)
    assert [event.bytes_ for event in phase.events] == sizes


def test_events_of_the_last_step_are_assigned_to_its_phases() -> None:
    events = [["a", size, number, 0] for number, size in enumerate((1, 2, 3, 4, 5))]
    marks = [["step 0", 0, 0], ["step 1", 1, 0], ["forward", 2, 0], ["backward", 3, 0], ["end", 4, 0]]
    found = gap.recorded(stream(events=events, marks=marks))
    assert [(phase.name, [event.bytes_ for event in phase.events]) for phase in found] == [
        ("input", [2]),
        ("forward", [3]),
        ("backward", [4]),
    ]
    with pytest.raises(gap.BadEvents, match="cut off"):
        gap.recorded(stream(events=events[:2], marks=marks))
