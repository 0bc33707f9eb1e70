"""The workspaces of cuDNN's convolutions: the rules, the measured table, and workspaces that do not fit."""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace

import pytest

from tests.places import BENCHMARKS

sys.path[:0] = [str(BENCHMARKS / "memory")]

import workspaces  # noqa: E402
from recorded import Recorded  # noqa: E402

from ratc.memory import estimate  # noqa: E402
from ratc.memory.convolutions import (  # noqa: E402
    BESIDE,
    Convolution,
    copies,
    described,
    measured,
    parsed,
    partial_sum_bytes,
    rule,
    signature,
    unmeasured,
    workspace,
)
from ratc.memory.scratch import read  # noqa: E402
from ratc.memory.trace import Program  # noqa: E402

SURVEY = BENCHMARKS / "memory" / "data" / "nvidia-h200-2026-11-26"
MIB = 1 << 20
#: 64 -> 64 features of 3 x 3, 64 images of 56 x 56, in bf16: the second block of a ResNet.
PLAIN = Convolution("bf16", False, False, 64, 64, 64, 1, 64 * 64 * 56 * 56, 64 * 64 * 56 * 56, (3, 3), (1, 1))
NUMBERS = [0, 0, 0, 0, 64, 64, 64, 1, 64 * 64 * 56 * 56, 64 * 64 * 56 * 56, 3, 3, 1, 1]


@pytest.mark.parametrize(
    ("kind", "under"), [("bf16", 0.02), ("fp16", 0.04), ("tf32", 0.05), ("fp32", 0.04)], ids=lambda value: str(value)
)
def test_workspace_rules_without_the_table_match_the_survey(kind: str, under: float) -> None:
    """Contiguous tensors: half of all passes are exact to 0.1 %, and few are under-estimated by more than 5 %."""
    rows = [row for row in workspaces.rows(SURVEY, "conv") if row["dt"] == kind and not row["last"]]
    found = [error for _, _, error in workspaces.errors(rows)]
    assert len(found) > 200
    assert statistics.median(abs(error) for error in found) < 0.001
    assert sum(error < -0.05 for error in found) / len(found) <= under


def test_workspaces_of_surveyed_convolutions_equal_the_survey() -> None:
    errors = [error for _, _, error in workspaces.errors(workspaces.rows(SURVEY, "conv"), measured())]
    assert len(errors) > 2500
    assert sum(abs(error) > 0.001 for error in errors) / len(errors) < 0.01  # a recorded step took more than the survey
    assert min(errors) > -0.001


def test_workspace_is_interpolated_from_other_batch_sizes() -> None:
    """bf16 at 16 images, from the rows of 1, 4 and 64 images alone."""
    others = [one for one in workspaces.surveyed_passes() if one.conv.batch != 16]
    rows = [
        row for row in workspaces.rows(SURVEY, "conv") if row["n"] == 16 and row["dt"] == "bf16" and not row["last"]
    ]
    found = [error for _, _, error in workspaces.errors(rows, workspaces.fitted(others))]
    assert len(found) > 50
    assert max(map(abs, found)) < 0.05


def test_numbers_of_a_trace_are_read_as_a_convolution_pass() -> None:
    assert described(NUMBERS) == (PLAIN, "forward")
    assert PLAIN.weights == 64 * 64 * 9
    assert PLAIN.positions == 64 * 56 * 56
    assert described([2, 3, *NUMBERS[2:]])[0].itemsize == 4
    turned, direction = described([2, 1, 0, 1, *NUMBERS[4:]])
    assert (turned.transposed, turned.arithmetic, direction) == (True, "fp16", "weight")


@pytest.mark.parametrize(
    "numbers",
    [[], NUMBERS[:9], NUMBERS[:10], NUMBERS[:-1], [3, *NUMBERS[1:]], [0, 4, *NUMBERS[2:]], [-1, *NUMBERS[1:]]]
    + [[*NUMBERS[:place], 0, *NUMBERS[place + 1 :]] for place in (5, 6, 7, 10, 13)],
)
def test_invalid_numbers_of_a_convolution_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"no convolution|not enough values"):
        described(numbers)
    with pytest.raises((ValueError, TypeError)):
        read(["convolution", *([number, 0] for number in numbers)])


def test_workspace_of_the_nearest_measured_size_is_used() -> None:
    """Copies grow with the images, what lies beside them does not; more than a sum a multiprocessor does."""
    key = list(signature(PLAIN, "weight"))
    large = 2 * partial_sum_bytes(PLAIN, 132)
    points = [[100, "", 5], [PLAIN.positions, "io", 7], [16 * PLAIN.positions, "w", large]]
    known = parsed({"sums": [], "passes": [[key, points]]})  # type: ignore[list-item]
    both = 2 * (PLAIN.inputs + PLAIN.outputs)
    assert workspace(PLAIN, "weight", known=known) == both + 7
    twice = replace(PLAIN, batch=128, inputs=2 * PLAIN.inputs, outputs=2 * PLAIN.outputs)
    assert workspace(twice, "weight", known=known) == 2 * both + 7
    tenfold = replace(PLAIN, batch=640, inputs=10 * PLAIN.inputs, outputs=10 * PLAIN.outputs)
    assert workspace(tenfold, "weight", known=known) == 2 * PLAIN.weights + round(large * 10 / 16)
    # Another direction or kernel is another pass, and no image is no reason to fail.
    ruled = rule(PLAIN, "input", 132, known)
    assert workspace(PLAIN, "input", known=known) == ruled + BESIDE == copies(PLAIN, "input") + BESIDE
    none = replace(PLAIN, batch=0, inputs=0, outputs=0)
    assert workspace(none, "weight", known=known) >= 0


def test_table_of_passes_holds_the_residue_of_the_rules() -> None:
    """And the passes that a rule explains; of two records of one pass the larger workspace counts."""
    right = Recorded("a", PLAIN, "forward", copies(PLAIN, "forward") + 16)
    (entry,) = workspaces.content([right])["passes"]
    assert entry[1] == [[PLAIN.positions, None, 0]]
    input_only = Recorded("a", PLAIN, "input", 2 * PLAIN.inputs + 100)
    more = replace(input_only, bytes_=2 * PLAIN.inputs + 300)
    (entry,) = workspaces.content([input_only, more, input_only])["passes"]
    assert entry[1] == [[PLAIN.positions, "i", 300]]
    sums = Recorded("a", PLAIN, "weight", copies(PLAIN, "weight") + BESIDE + 3 * MIB)
    content = workspaces.content([sums])
    assert content["sums"] == [[["half", 64, 576], [[PLAIN.positions, 3 * MIB]]]]
    assert workspace(PLAIN, "weight", known=parsed(content)) == sums.bytes_


def test_committed_table_covers_every_surveyed_pass() -> None:
    """Of the survey: the recorded steps need their traces, and `workspaces.py --write` reads both."""
    known = measured()
    assert len(known.passes) > 1500
    assert len(known.sums) > 60
    assert all(signature(one.conv, one.direction) in known.passes for one in workspaces.surveyed_passes())


def test_largest_workspace_of_unmeasured_convolutions_is_found() -> None:
    strange = replace(PLAIN, features=72, outputs=PLAIN.outputs // 64 * 72)
    known = parsed({"sums": [], "passes": [[list(signature(PLAIN, "forward")), [[1, None, 0]]]]})  # type: ignore[list-item]
    assert unmeasured([], known) == unmeasured([(PLAIN, "forward")], known) == 0
    assert unmeasured([(PLAIN, "forward"), (strange, "forward")], known) == workspace(strange, "forward", known=known)
    assert unmeasured([(PLAIN, "weight"), (strange, "forward")], known) == workspace(strange, "forward", known=known)
    # One that takes nothing does not count: a head of its own is no other model.
    head = Convolution("bf16", False, False, 64, 64, 3, 1, PLAIN.inputs, 3 * 64 * 56 * 56, (1, 1), (1, 1))
    assert unmeasured([(PLAIN, "forward"), (head, "forward")], known) == 0


def test_optional_workspace_is_halved_once_if_it_does_not_fit() -> None:
    """A block of 100 MiB, then a pass of 40 MiB: with 130 MiB a kernel with 20 MiB runs, with 110 none."""
    program = Program([0, 1, ~1, ~0], [100 * MIB, 40 * MIB], [0, 0], [0, 0], [0, 0], ("",), ("",), 0)
    program = replace(program, optional=frozenset([1]))
    assert estimate.live_peak(program, 1) == 120 * MIB
    fits = {cap: estimate.replay(program, 1, cap * MIB) for cap in (141, 130, 110)}
    assert [found.fits for found in fits.values()] == [True, True, False]
    assert fits[141].peak_allocated_bytes == 140 * MIB
    assert fits[130].peak_allocated_bytes == 120 * MIB
    assert (fits[141].slower, fits[130].slower) == (frozenset(), frozenset([1]))
    # What is alive at the peak adds up to the peak, whole or half.
    for found in (fits[141], fits[130]):
        alive = estimate.breakdown(program, 1, found.peak, found.slower)
        assert sum(alive.by_module.values()) == found.peak_allocated_bytes
    assert not estimate.replay(replace(program, optional=frozenset()), 1, 130 * MIB).fits
