"""The replay of the caching allocator: against PyTorch's own, against documented cases, and its invariants."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratc.memory.allocator import SHIFT, Allocator, ExpandableAllocator, OutOfMemory, rounded, segment_size
from tests.effort import examples

MIB = 1 << 20
BOTH = (Allocator, ExpandableAllocator)
#: What libc10_cuda.so of torch did (benchmarks/memory/genuine_allocator.py --record), and to what sequences.
GENUINE = json.loads((Path(__file__).parent / "genuine.json").read_text())


def run(allocator, made):
    """The outcome of a sequence of (number, bytes); 0 bytes frees."""
    places, failed = {}, -1
    for position, (number, size) in enumerate(made):
        try:
            if size:
                places[number] = allocator.malloc(size)
            else:
                allocator.free(places.pop(number))
        except OutOfMemory:
            failed = position
            break
    return {
        "failed": failed,
        "peak_allocated": allocator.peak_allocated,
        "peak_reserved": allocator.peak_reserved,
        "allocated": allocator.allocated,
        "reserved": allocator.reserved,
    }


@pytest.mark.parametrize("expandable", [False, True])
def test_replay_equals_recorded_pytorch_allocations_to_the_byte(expandable):
    cases = [case for case in GENUINE["cases"] if case["expandable"] is expandable]
    assert len(cases) >= 50
    assert sum(case["outcome"]["failed"] >= 0 for case in cases) >= 10, "cases must run out of memory too"
    for case in cases:
        allocator = BOTH[expandable](case["cap"])
        assert run(allocator, GENUINE["sequences"][str(case["seed"])]) == case["outcome"], (case["seed"], case["cap"])


@pytest.mark.parametrize(
    ("size", "takes", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
    ],
)
def test_sizes_are_rounded_and_segments_chosen_as_documented(size, takes, segment):
    assert rounded(size) == takes
    assert segment_size(takes) == segment
    allocator = Allocator()
    allocator.malloc(size)
    # A rest of up to 1 MiB of the large pool is not split off, and so counts as allocated.
    assert allocator.allocated == (segment if segment - takes <= MIB and takes > MIB else takes)
    assert allocator.reserved == segment


def test_third_small_request_needs_a_second_segment():
    allocator = Allocator()
    for expected in (2, 2, 4):
        allocator.malloc(MIB)
        assert allocator.reserved == expected * MIB


def test_smallest_sufficient_free_block_is_reused():
    allocator = Allocator()
    blocks = [allocator.malloc(size * MIB) for size in (40, 30, 50)]
    for block in blocks:
        allocator.free(block)
    assert allocator.malloc(29 * MIB + 1) == blocks[1]


def test_a_large_block_is_split_only_if_more_than_a_mebibyte_is_left():
    for wanted, rest in ((31 * MIB, 0), (30 * MIB, 2 * MIB)):
        allocator = Allocator()
        allocator.free(allocator.malloc(32 * MIB))
        allocator.malloc(wanted)
        assert allocator.allocated == 32 * MIB - rest


def test_neighbouring_free_blocks_are_merged():
    allocator = Allocator()
    first, second = allocator.malloc(8 * MIB), allocator.malloc(8 * MIB)
    allocator.free(first)
    allocator.free(second)
    assert allocator.malloc(16 * MIB) == first
    assert allocator.reserved == 20 * MIB


def test_cached_segments_are_released_at_the_cap():
    allocator = Allocator(cap=50 * MIB)
    allocator.free(allocator.malloc(30 * MIB))
    allocator.malloc(40 * MIB)
    assert (allocator.reserved, allocator.peak_reserved, allocator.retries) == (40 * MIB, 40 * MIB, 1)


def test_fragmentation_runs_out_of_memory_despite_enough_free_bytes():
    """A segment that is partly used cannot be given back: 16 MiB are free in it, and 11 MiB more are below the cap."""
    allocator = Allocator(cap=31 * MIB)
    first, _ = allocator.malloc(8 * MIB), allocator.malloc(4 * MIB)
    allocator.free(first)
    with pytest.raises(OutOfMemory) as stopped:
        allocator.malloc(12 * MIB)
    assert stopped.value.wanted_bytes == 12 * MIB
    assert allocator.allocated + 12 * MIB < 31 * MIB
    allocator = ExpandableAllocator(cap=40 * MIB)
    first, _ = allocator.malloc(8 * MIB), allocator.malloc(4 * MIB)
    allocator.free(first)
    allocator.malloc(12 * MIB)  # grows by one page instead
    assert allocator.reserved == 40 * MIB


def test_free_of_an_unused_address_is_refused():
    allocator = Allocator()
    block = allocator.malloc(5)
    allocator.free(block)
    with pytest.raises(KeyError):
        allocator.free(block)


@pytest.mark.parametrize("kind", BOTH)
def test_replay_handles_petabyte_sizes(kind):
    """Full attention over a slide that nobody scaled down: what it needs must be said, not fail."""
    allocator = kind()
    blocks = [allocator.malloc(200 << 40) for _ in range(4)]
    for block in blocks:
        allocator.free(block)
    assert allocator.allocated == 0
    assert allocator.peak_allocated == 800 << 40
    assert allocator.malloc(200 << 40) in blocks


SIZES = st.one_of(
    st.integers(1, 4 * MIB),
    st.integers(1, 64 * MIB),
    st.sampled_from([1, 512, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 20 * MIB]),
)
#: Sizes to allocate, and positions of the live blocks to free.
ACTIONS = st.lists(st.one_of(SIZES, st.integers(-30, -1)), max_size=120)


def carry_out(allocator, actions, check):
    """Allocate and free, checking after each; returns the live blocks by address, and whether it ran out."""
    live = {}
    for action in actions:
        if action > 0:
            try:
                live[allocator.malloc(action)] = action
            except OutOfMemory:
                return live, False
        elif live:
            address = list(live)[action % len(live)]
            allocator.free(address)
            del live[address]
        check(allocator, live)
    return live, True


def check_invariants(allocator, live):
    free = sorted((start, start + size) for start, size in allocator._sizes.items())
    used = sorted((start, start + size) for start, size in allocator.used.items())
    ranges = sorted(free + used)
    assert all(one[1] <= two[0] for one, two in pairwise(ranges)), "blocks overlap"
    assert all(allocator.used[address] >= size for address, size in live.items())
    assert set(allocator.used) == set(live)
    assert sum(allocator.used.values()) == allocator.allocated
    assert sum(allocator.used.values()) + sum(allocator._sizes.values()) == allocator.reserved, "bytes are lost or made"
    assert sorted(allocator.small + allocator.large) == sorted(
        size << SHIFT | start for start, size in allocator._sizes.items()
    )
    assert allocator.small == sorted(allocator.small)
    assert allocator.large == sorted(allocator.large)
    ends = {end for _, end in free}
    assert not ends & {start for start, _ in free}, "free neighbours were not merged"
    assert allocator.allocated <= allocator.reserved <= allocator.peak_reserved
    assert allocator.cap is None or allocator.peak_reserved <= allocator.cap
    if type(allocator) is Allocator:
        assert sum(allocator.segments.values()) == allocator.reserved, "a segment was freed in part"
        for start, end in ranges:
            assert any(first <= start and end <= first + size for first, size in allocator.segments.items())


@pytest.mark.parametrize("kind", BOTH)
@given(actions=ACTIONS, cap=st.one_of(st.none(), st.integers(0, 300 * MIB)))
@settings(max_examples=examples(150), deadline=None)
def test_blocks_never_overlap_and_no_byte_is_lost(kind, actions, cap):
    carry_out(kind(cap), actions, check_invariants)


@pytest.mark.parametrize("kind", BOTH)
@given(actions=ACTIONS)
@settings(max_examples=examples(80), deadline=None)
def test_all_memory_is_released_if_everything_is_free(kind, actions):
    allocator = kind()
    live, _ = carry_out(allocator, actions, lambda *_: None)
    for address in live:
        allocator.free(address)
    allocator.release_cached()
    assert (allocator.allocated, allocator.reserved) == (0, 0)
    assert not allocator.small
    assert not allocator.large


@given(actions=ACTIONS, spare=st.integers(0, 100 * MIB))
@settings(max_examples=examples(80), deadline=None)
def test_cap_above_the_unbounded_peak_changes_nothing(actions, spare):
    free = Allocator()
    carry_out(free, actions, lambda *_: None)
    capped = Allocator(free.peak_reserved + spare)
    _, done = carry_out(capped, actions, lambda *_: None)
    assert done
    assert (capped.peak_allocated, capped.peak_reserved) == (free.peak_allocated, free.peak_reserved)
    assert capped.retries == 0


@given(actions=ACTIONS, cap=st.integers(0, 300 * MIB))
@settings(max_examples=examples(80), deadline=None)
def test_cap_below_the_live_bytes_runs_out_of_memory(actions, cap):
    free = Allocator()
    live, peak = {}, 0
    for action in actions:
        if action > 0:
            live[free.malloc(action)] = rounded(action)
        elif live:
            address = list(live)[action % len(live)]
            free.free(address)
            del live[address]
        peak = max(peak, sum(live.values()))
    _, done = carry_out(Allocator(cap), actions, lambda *_: None)
    assert not done or cap >= peak


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("size", [MIB // 2, 30 * MIB])
def test_cached_blocks_are_not_reused_by_another_stream(kind, size):
    allocator = kind()
    first = allocator.malloc(size, 1)
    allocator.free(first)
    reserved = allocator.reserved
    assert allocator.malloc(size, 1) == first
    allocator.free(first)
    assert allocator.reserved == reserved
    other = allocator.malloc(size)
    assert allocator.reserved == 2 * reserved
    # The cache of every stream is given back, also when memory runs out.
    allocator.release_cached()
    assert allocator.reserved == reserved
    allocator.free(other)
    allocator.release_cached()
    assert allocator.reserved == 0
    tight = kind(2 * reserved - MIB)
    tight.free(tight.malloc(size, 1))
    assert tight.malloc(size) >= 0
    assert tight.reserved == reserved


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40 * MIB)), max_size=30), st.booleans())
def test_streams_reserve_together_what_each_reserves_alone(made, expandable):
    """Each stream reserves what it would reserve alone, if nothing runs out."""
    together = BOTH[expandable]()
    alone = [BOTH[expandable]() for _ in range(3)]
    for number, (stream, size) in enumerate(made):
        places = [together.malloc(size, stream), alone[stream].malloc(size)]
        if number % 3 == 0:
            together.free(places[0])
            alone[stream].free(places[1])
    assert together.reserved == sum(one.reserved for one in alone)
    assert together.allocated == sum(one.allocated for one in alone)
