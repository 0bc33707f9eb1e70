"""Predicted step times against measured ones, as in the table of docs/develop/step-times.md."""

import statistics
import sys

import pytest

from ratc.own_code import trust
from ratc.timing.roofline import SPREAD
from tests.effort import skip_if_late
from tests.places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import step_times

#: A case that was not measured well: its median is 1.6 times its least, and 1.6 times that of the same step in fp32.
UNSTEADY = ("rat, tf32",)


def test_every_measured_step_has_a_request_and_a_card_with_peaks():
    for file in step_times.files():
        rows = step_times.rows_of(file)
        assert len(rows) == 24
        for row, request in rows:
            assert 0 < row["step_ms_min"] <= row["step_ms_median"], row["name"]
            assert request["accumulation"] == 1


def test_the_factor_covers_nine_tenths_of_the_cases():
    assert step_times.covering_factor([1.0] * 9 + [5.0]) == 1.0
    assert step_times.covering_factor([1.0] * 8 + [0.5, 0.1]) == 2.0


def test_the_table_is_written_between_the_marks_of_the_page():
    page = f"head\n{step_times.BEGIN}\nold\n{step_times.END}\ntail\n"
    assert step_times.written(page, "new") == f"head\n{step_times.BEGIN}\n\nnew\n\n{step_times.END}\ntail\n"
    with pytest.raises(ValueError, match="no lines"):
        step_times.written("head", "new")
    assert step_times.written(step_times.PAGE.read_text(), "new").count("new")


@pytest.mark.slow
@pytest.mark.parametrize("file", step_times.files(), ids=lambda file: file.parent.name)
def test_predicted_step_times_are_within_the_limits_of_the_measured_ones(file, monkeypatch):
    """Median error at most 15 %, and 40 % for each case. The interval holds 90 % of them with their model left out."""
    pytest.importorskip("torch")
    monkeypatch.setattr(trust, "allows", lambda *_: True)
    skip_if_late()
    cases = step_times.cases_of(file)
    others = step_times.left_out(cases)
    print(step_times.table(cases, others))
    errors = {case.name: abs(case.predicted_ms() / case.measured_ms - 1) for case in cases}
    assert statistics.median(errors.values()) <= 0.15
    assert {name for name, error in errors.items() if error > 0.4} == set(UNSTEADY)
    inside = [1 / SPREAD <= others[case.name] / case.measured_ms <= SPREAD for case in cases]
    assert sum(inside) >= 0.9 * len(inside)
