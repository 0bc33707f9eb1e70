"""The estimate: sizes at any batch, peaks against a count on paper, breakdown and timeline that add up, bad traces
refused.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratc.memory.allocator import Allocator, rounded
from ratc.memory.estimate import Predictor, breakdown, carried, live_peak, replay, timeline
from ratc.memory.terms import Device
from ratc.memory.trace import BadTrace, Program, parse
from ratc.memory.zero import Strategy
from tests.effort import examples
from tests.helpers.made_traces import MIB, layers, trace

CARD = Device("card", 24 << 30, "8.6")


def test_live_peak_equals_a_count_by_hand():
    """4 layers: weights and both moments are 3 x 16 MiB; in backward each layer adds a gradient and frees its
    activation.
    """
    for micro in (1, 2, 5):
        at_layer = [48 + 4 * done + micro * (0.5 + 2 * (5 - done) + 3) for done in (1, 2, 3, 4)]
        expected = max(at_layer) * MIB
        assert live_peak(trace().program, micro) == expected
        found = replay(trace().program, micro)
        # A block may hold up to 1 MiB that was not worth splitting off.
        assert expected <= found.peak_allocated_bytes <= expected + 20 * MIB
        assert found.peak_reserved_bytes >= found.peak_allocated_bytes


def test_sizes_are_linear_in_the_micro_batch():
    program = trace(activation=1.5).program
    assert program.kinds[program.kind[-1]] == "temporary"
    sizes = program.sizes(4)
    activations = [size for size, kind in zip(sizes, program.kind, strict=True) if program.kinds[kind] == "activation"]
    assert set(activations) == {6}


#: Four blocks of a step and what the step before it left: (sizes in MiB, the order of allocations, ~ frees). Found by a
#: search: only its third repetition reserves all that it ever will.
SLOW = (37, 4, 18, 26, 14), (0, ~0, 1, 2, 3, 4, ~1, ~2, ~4, ~3)


def program_of(sizes: Sequence[int], ops: Sequence[int], start: int) -> Program:
    empty = [0] * len(sizes)
    return Program(list(ops), [size * MIB for size in sizes], empty, empty, empty, ("activation",), ("",), start)


def repeat(step: Sequence[int], count: int, by: int) -> list[int]:
    """A step ``count`` times over, each time with blocks of its own."""
    return [op + by * turn if op >= 0 else ~(~op + by * turn) for turn in range(count) for op in step]


def test_step_is_repeated_until_the_reserved_memory_is_stable():
    sizes, ops = SLOW
    step = ops[2:]
    for count, reserved in ((1, 64), (2, 78), (3, 92), (4, 92)):
        allocator = Allocator()
        addresses: dict[int, int] = {}
        for op in (*ops[:2], *repeat(step, count, 10)):
            if op >= 0:
                addresses[op] = allocator.malloc(sizes[op % 10] * MIB)
            else:
                allocator.free(addresses[~op])
        assert allocator.peak_reserved == reserved * MIB
    assert replay(program_of(sizes, ops, 2), 1).peak_reserved_bytes == 92 * MIB
    at_cap = replay(program_of(sizes, ops, 2), 1, cap=80 * MIB)
    assert at_cap.retries
    assert at_cap.peak_reserved_bytes <= 80 * MIB


@settings(max_examples=examples(100))
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_repeated_step_equals_the_same_step_written_out(sizes, chance):
    """What a step leaves for the next one to free is freed by the repeated step, too."""
    kept, left = 0, len(sizes)  # what the step before left, and what this one leaves
    step, alive = [~kept], []
    for number in range(left, 2 * left):
        step.append(number)
        if number != left:
            alive.append(number)
        if alive and chance.random() < 0.5:
            step.append(~alive.pop(chance.randrange(len(alive))))
    step += [~number for number in alive]
    program = program_of([*sizes, *sizes], [kept, *step], 1)
    assert carried(program, program.sizes(1)) == {kept: left}
    allocator = Allocator()
    here = allocator.malloc(sizes[kept] * MIB)
    reserved = [0]
    for _ in range(6):
        addresses = {kept: here}
        for op in step:
            if op >= 0:
                addresses[op] = allocator.malloc(sizes[op % len(sizes)] * MIB)
            else:
                allocator.free(addresses[~op])
        here = addresses[left]
        if allocator.reserved <= reserved[-1]:
            break
        reserved.append(allocator.reserved)
    found = replay(program, 1)
    assert (found.peak_reserved_bytes, found.fits) == (allocator.peak_reserved, True)


def test_step_that_leaks_memory_is_not_repeated():
    program = program_of((8, 12), (0, 1, ~0), 1)
    assert carried(program, program.sizes(1)) is None
    assert replay(program, 1).peak_reserved_bytes == 20 * MIB


def test_breakdown_adds_up_to_the_peak():
    program = trace().program
    found = replay(program, 3)
    parts = breakdown(program, 3, found.peak)
    for view in (parts.by_kind, parts.by_module, parts.by_both):
        assert sum(view.values()) == found.peak_allocated_bytes
    assert parts.by_kind["optimizer"] == 32 * MIB
    assert parts.by_kind["activation"] == 3 * 4 * 2 * MIB
    assert parts.largest(1)[0][0] == "layers.3"


def test_timeline_has_the_peak_and_at_most_the_requested_points():
    program = trace(count=20).program
    for samples in (1, 7, 50):
        points = timeline(program, 2, samples)
        assert 1 <= len(points) <= samples
        assert max(sum(point) for point in points) == live_peak(program, 2)
        assert all(min(point) >= 0 for point in points)


def test_replay_below_the_live_peak_fails_at_an_allocation():
    program = trace().program
    lowest = live_peak(program, 4)
    found = replay(program, 4, lowest - 1)
    assert not found.fits
    assert found.wanted_bytes > 0
    assert program.ops[found.peak] >= 0, "it stops at an allocation"


@given(
    micro=st.integers(1, 64),
    count=st.integers(1, 12),
    weight=st.integers(1, 30 * MIB),
    activation=st.integers(0, 20 * MIB),
    share=st.floats(0.5, 1.5),
)
@settings(max_examples=examples(60), deadline=None)
def test_replay_lies_between_the_live_and_the_unbounded_peak(micro, count, weight, activation, share):
    predictor = Predictor(trace(count=count, weight=weight, activation=activation))
    free = predictor.unbounded(micro)
    assert predictor.lowest(micro) <= free.peak_allocated_bytes <= free.peak_reserved_bytes
    cap = int(free.peak_reserved_bytes * share)
    found = replay(predictor.program, micro, cap)
    assert found.peak_reserved_bytes <= cap or not found.fits
    if cap >= free.peak_reserved_bytes:
        assert found.fits
    if cap < predictor.lowest(micro):
        assert not found.fits


@given(micro=st.integers(1, 200))
@settings(max_examples=examples(30), deadline=None)
def test_live_peak_grows_with_the_micro_batch(micro):
    program = trace().program
    assert live_peak(program, micro + 1) > live_peak(program, micro)


def test_cap_subtracts_memory_outside_the_allocator_and_the_margin():
    predictor = Predictor(trace())
    found = predictor.estimate(CARD, 2)
    beside = sum(term.bytes_ for term in found.outside)
    assert found.budget_bytes == CARD.memory_bytes - beside
    assert found.cap_bytes == int(found.budget_bytes * (1 - found.margin))
    assert found.predicted_bytes == found.peak_reserved_bytes + beside
    assert {term.name for term in found.outside} == {"kept by the driver", "CUDA context and kernels"}
    several = Predictor(trace(), Strategy(world_size=4)).estimate(CARD, 2)
    assert "NCCL channels" in {term.name for term in several.outside}
    assert several.cap_bytes < found.cap_bytes


def test_memory_fraction_limits_the_budget():
    """`per_process_memory_fraction` counts from what the driver leaves, as `torch.cuda.mem_get_info` tells it."""
    whole, part = (Predictor(trace()).estimate(replace(CARD, fraction=share), 2) for share in (1.0, 0.3))
    driver = next(term for term in whole.outside if term.name == "kept by the driver").bytes_
    assert part.budget_bytes == pytest.approx(0.3 * (CARD.memory_bytes - driver), abs=1)
    assert "per_process_memory_fraction:0.3" in part.outside[-1].source
    assert Predictor(trace()).estimate(replace(CARD, fraction=0.999), 2).outside == whole.outside  # it leaves enough


def test_step_that_does_not_fit_reports_its_unbounded_peak():
    predictor = Predictor(trace(activation=100 * MIB))
    found = predictor.estimate(CARD, 200)
    assert not found.fits
    assert found.peak_reserved_bytes > found.cap_bytes
    assert found.peak_allocated_bytes >= 200 * 4 * 100 * MIB


def test_needed_memory_fits_and_3_percent_less_does_not():
    predictor = Predictor(trace(count=30, activation=7.3 * MIB))
    micro = 128
    need = predictor.need(CARD, micro)
    # What the driver keeps is a share of the card's own memory, so the need is that of a card like this one.
    beside = sum(term.bytes_ for term in predictor.estimate(CARD, micro).outside)
    cap = int((need - beside) * (1 - predictor.margin_of(CARD)))
    assert replay(predictor.program, micro, cap + 1).fits
    assert not replay(predictor.program, micro, int(cap * 0.97)).fits


def test_card_smaller_than_its_cuda_context_fits_nothing():
    tiny = Device("tiny", 100 * MIB, "7.0")
    assert Predictor(trace()).cap(tiny) == 0
    assert not Predictor(trace()).estimate(tiny, 1).fits


@pytest.mark.parametrize(
    ("capability", "kernels"),
    [("6.0", "6.0"), ("7.0", "7.0"), ("7.5", "7.0"), ("8.0", "8.0"), ("8.6", "8.6"), ("8.9", "8.6"), ("9.0", "9.0")],
)
def test_cards_with_the_same_kernels_share_traces(capability, kernels):
    assert Device("card", 1 << 34, capability).kernels == kernels


def test_breakdown_counts_rounded_sizes():
    program = trace(weight=1000, activation=700, temporary=0).program
    parts = breakdown(program, 1, replay(program, 1).peak)
    assert parts.by_kind["parameter"] == 4 * rounded(1000) == 4 * 1024


def trace_with(path, value):
    data = copy.deepcopy(layers())
    *way, last = path
    place = data
    for step in way:
        place = place[step]
    place[last] = value
    return data


#: docs/reference/trace.md: bf16, 64 -> 64 features, 3 x 3.
CONVOLUTION = [[0, 0], [0, 0], [0, 0], [0, 0], [0, 1], [64, 0], [64, 0], [1, 0], [0, 9216], [0, 9216], *([[3, 0]] * 2)]
CONVOLUTION += [[1, 0]] * 2


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (None, "not an object"),
        ([], "not an object"),
        (trace_with(["trace_version"], 1), "version 1"),
        (trace_with(["kinds"], ["parameter"]), "kinds parameter"),
        (trace_with(["steps"], []), "steps"),
        (trace_with(["steps"], [10**9]), "steps"),
        (trace_with(["events", 0], [0]), "event 0"),
        (trace_with(["events", 0], [0, -1, 0, 0, 0, 0]), "event 0"),
        (trace_with(["events", 0], [0, 4, 0, 99, 0, 0]), "event 0"),
        (trace_with(["events", 0], "words"), "event 0"),
        (trace_with(["events", 1, 0], 0), "event 1"),
        *((trace_with(["events", 0, 1], size), "event 0") for size in (math.nan, math.inf, 10**400)),
        *((trace_with(["events", 0, place], 0.5), "event 0") for place in (3, 4, 5)),
        *(
            (trace_with(["scratch"], [[0, "segments", [n, 0], [1, 0], [1, 0]]]), "Error")
            for n in (math.inf, math.nan, 1e300)
        ),
        (trace_with(["scratch"], [[0, "convolution", *CONVOLUTION]]), "convolutions that `estimates` does not name"),
        (
            trace_with(["scratch"], [[0, "convolution", [0, 1], *CONVOLUTION[1:]]]),
            "another convolution for every batch",
        ),
        (trace_with(["request"], None), "AttributeError"),
        (trace_with(["optional"], [math.inf]), "OverflowError"),
        (trace_with(["parameters"], {"count": 1}), "KeyError"),
        (trace_with(["work"], None), "not a list of kernels"),
        (trace_with(["work"], [["mm", "bf16", 1, 0, 1, 0, 0, 0]]), "not enough values"),
        (trace_with(["work"], [["mm", "int4", 1, 0, 1, 0, 0, 0, 0]]), "kernel .*int4"),
        (trace_with(["work"], [["mm", "bf16", 1, 99, 1, 0, 0, 0, 0]]), "kernel .*99"),
        (trace_with(["work"], [["mm", "bf16", 1, 0, 0, 0, 0, 0, 0]]), "kernel"),
        (trace_with(["work"], [["mm", "bf16", 1, 0, 1, math.nan, 0, 0, 0]]), "kernel"),
        (trace_with(["parameters", "trainable"], 10**12), "more trainable"),
        (trace_with(["blocks"], {"a": 1}), "`blocks` is not a list"),
        (trace_with(["blocks"], [["a", [0, 1, 1], [], [], []]]), "block .*a"),
        (trace_with(["blocks"], [["a", [2, 1, 3, 4], [], [], []]]), "block .*a"),
        (trace_with(["blocks"], [["a", [0, 1, 2, 10**9], [], [], []]]), "block .*a"),
        (trace_with(["blocks"], [["a", [0, 1, 2, math.nan], [], [], []]]), "block .*a"),
        (trace_with(["blocks"], [["a", [0, 1, 1, 2], [10**9], [], []]]), "block .*a"),
        (trace_with(["blocks"], [["a", [0, 1, 1, 2], [], [[]], []]]), "block .*a"),
        *((trace_with(["blocks"], [["a", [0, 1, 1, 2], [], [], [[row, 1]]]]), "block .*a") for row in (-1, 10**6)),
    ],
)
def test_malformed_trace_is_refused_with_the_reason(data, complaint):
    with pytest.raises(BadTrace, match=complaint):
        parse(data)
