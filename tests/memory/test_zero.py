"""ZeRO and DDP in bytes: against the field's formulas, and block by block for a model counted on paper."""

import pytest
from made_traces import MIB, trace

from ratc.memory.allocator import rounded
from ratc.memory.compose import compose
from ratc.memory.estimate import breakdown, live_peak, replay
from ratc.memory.zero import Block, Strategy, bucket_elements, gradient_sizes, layout, partition, pinned

RANKS = 8


def deepspeed(stage, precision="bf16", **more):
    return Strategy("deepspeed", RANKS, stage, precision=precision, **more)


def states(found):
    """Bytes of weights, gradients and optimizer that a layout holds for good and at the update."""
    kinds = ("parameter", "gradient", "optimizer")
    return sum(block.bytes_ for block in found.persistent if block.kind in kinds)


@pytest.mark.parametrize(
    ("stage", "precision", "persistent"),
    [
        # Bytes a parameter; the ZeRO paper's table 1 and DeepSpeed's memory documentation give 4 + 8 for fp32 states in
        # bf16.
        (1, "bf16", 2 + 12 / RANKS),
        (2, "bf16", 2 + 12 / RANKS),
        (3, "bf16", 2 / RANKS + 12 / RANKS + 2 / RANKS),  # grad_partitions_flat_buffer is kept
        (1, "fp32", 4 + 12 / RANKS),
        (2, "fp32", 4 + 12 / RANKS),
        (3, "fp32", 4 / RANKS + 12 / RANKS + 4 / RANKS),
    ],
)
def test_model_states_are_the_papers_bytes_a_parameter(stage, precision, persistent):
    width = 2 if precision == "bf16" else 4
    model = trace(optimizer=False, width=width)
    found = layout(model, deepspeed(stage, precision))
    assert states(found) == pytest.approx(persistent * model.trainable, rel=1e-6)


def test_stage_0_holds_everything_on_every_rank():
    model = trace(optimizer=False, width=2)
    found = layout(model, deepspeed(0))
    assert found.parameters == "kept"
    assert states(found) == 12 * model.trainable
    at_update = {block.name: block.bytes_ for block in found.update}
    assert at_update["fp32 gradients"] == 4 * model.trainable


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_moves_the_optimizer_to_the_host(stage):
    model = trace(optimizer=False, width=2)
    here, there = layout(model, deepspeed(stage)), layout(model, deepspeed(stage, offload_optimizer=True))
    part = partition(model.trainable, RANKS)
    assert not [block for block in there.persistent if block.kind == "optimizer"]
    moved = states(here) - states(there)
    assert moved == 12 * part + (2 * part if stage == 3 else 0)
    assert here.host_bytes == 0
    # Master weights and gradients in fp32 are page-locked, moments are not, and the bit16 copy is.
    assert there.host_bytes == 2 * pinned(4 * part) + 8 * part + pinned(2 * part)


def test_accumulation_keeps_another_partition_of_gradients():
    model = trace(optimizer=False, width=2)
    part = partition(model.trainable, RANKS)
    once, again = layout(model, deepspeed(2)), layout(model, deepspeed(2, accumulates=True))
    assert states(again) - states(once) == 2 * part
    host = [layout(model, deepspeed(1, offload_optimizer=True, accumulates=more)).host_bytes for more in (False, True)]
    assert host[1] - host[0] == pinned(2 * part)


@pytest.mark.parametrize(("elements", "ranks", "expected"), [(1, 1, 2), (16, 8, 2), (17, 8, 4), (100, 3, 34)])
def test_partitions_are_padded_to_two_elements_a_rank(elements, ranks, expected):
    assert partition(elements, ranks) == expected
    assert partition(elements, ranks) * ranks >= elements


def test_buckets_are_no_larger_than_the_model():
    assert bucket_elements(1_000) == 1_000
    assert bucket_elements(10**10) == 50_000_000
    assert bucket_elements(0) == 1


@pytest.mark.parametrize(("size", "taken"), [(0, 0), (1, 1), (3, 4), (4096, 4096), (4097, 8192)])
def test_page_locked_memory_comes_in_powers_of_two(size, taken):
    assert pinned(size) == taken


def test_overlap_doubles_the_reduce_bucket():
    model = trace(optimizer=False, width=2)
    for overlap, count in ((False, 1), (True, 2)):
        found = layout(model, deepspeed(2, overlap=overlap, bucket=1000))
        assert [block for block in found.backward if block.kind == "bucket"] == [
            Block("reduce bucket", "bucket", 2000)
        ] * count


@pytest.mark.parametrize(
    ("layers", "weight", "expected"),
    [
        (3, 4 * MIB, [4 * MIB, 8 * MIB]),  # the first bucket closes at 1 MiB, the last is what is left
        (10, 4 * MIB, [4 * MIB, 28 * MIB, 8 * MIB]),
        (2, 30 * MIB, [30 * MIB, 30 * MIB]),
        (2, MIB // 4, [MIB // 2]),
    ],
)
def test_ddp_buckets_close_at_25_mebibytes(layers, weight, expected):
    found = layout(trace(count=layers, weight=weight), Strategy(world_size=2))
    assert [block.bytes_ for block in found.persistent] == expected
    assert sum(expected) == sum(gradient_sizes(trace(count=layers, weight=weight)))


def test_one_process_adds_nothing():
    model = trace()
    assert layout(model, Strategy()).persistent == ()
    same = compose(model, layout(model, Strategy()))
    assert same.ops == model.program.ops
    assert same.sizes(3) == model.program.sizes(3)


@pytest.mark.parametrize(
    ("strategy", "complaint"),
    [(Strategy("deepspeed", 2, 4), "no stage 4"), (Strategy("deepspeed", 2, 0, True), "from ZeRO stage 1 on")],
)
def test_what_deepspeed_does_not_have_is_refused(strategy, complaint):
    with pytest.raises(ValueError, match=complaint):
        layout(trace(), strategy)


@pytest.mark.parametrize("accumulating", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_composed_step_frees_what_it_allocates_and_repeats(stage, accumulating):
    model = trace(optimizer=False, width=2, accumulating=accumulating)
    program = compose(model, layout(model, deepspeed(stage, accumulates=accumulating, bucket=1 << 20)))
    alive = set()
    at_start = None
    for index, op in enumerate(program.ops):
        if index == program.start:
            at_start = frozenset(alive)
        if op >= 0:
            assert op not in alive
            alive.add(op)
        else:
            alive.remove(~op)
    # Nothing of a step is left behind: the second began with what it ended with, so every later one is like it.
    assert at_start == alive
    kinds = {program.kinds[program.kind[op]] for op in alive}
    assert kinds <= {"parameter", "optimizer", "gradient", "bucket"}
    assert replay(program, 2).fits


def test_gradients_are_reduced_by_the_bucket_from_stage_2_on():
    """8 layers of 4 MiB: all 32 MiB outlive backward in stage 1, in stage 2 two buckets and what fills a third."""
    model = trace(count=8, optimizer=False, width=2, activation=0, temporary=0)

    def most(stage, bucket):
        program = compose(model, layout(model, deepspeed(stage, bucket=bucket)))
        traced = len(model.program.fixed)
        alive = highest = 0
        for op in program.ops:
            number = op if op >= 0 else ~op
            if number < traced and program.kinds[program.kind[number]] == "gradient":
                alive += program.fixed[number] * (1 if op >= 0 else -1)
                highest = max(highest, alive)
        return highest

    elements = 4 * MIB // 2  # a bucket of one layer
    assert most(1, elements) == 32 * MIB
    assert most(2, elements) == 12 * MIB  # two buckets wait, and the gradient that fills the third
    assert most(3, elements) == 8 * MIB
    assert most(2, 100 * elements) == 32 * MIB


def test_higher_stages_take_less_where_states_dominate():
    model = trace(count=8, weight=64 * MIB, optimizer=False, width=2, activation=1, temporary=1)
    peaks = [live_peak(compose(model, layout(model, deepspeed(stage, bucket=1_000_000))), 1) for stage in (0, 1, 2, 3)]
    assert peaks[:3] == sorted(set(peaks[:3]), reverse=True)
    # What is gathered of a model this small stays for the whole step: stage 3 holds its own part of the weights beside.
    assert peaks[2] <= peaks[3] <= peaks[2] + 2 * partition(model.trainable, RANKS)


def test_the_breakdown_names_what_an_engine_adds():
    model = trace(optimizer=False, width=2)
    program = compose(model, layout(model, deepspeed(2)))
    parts = breakdown(program, 1, replay(program, 1).peak)
    assert parts.by_module["(fp32 weights)"] == 4 * partition(model.trainable, RANKS)
    assert parts.by_kind["bucket"] == 2 * rounded(2 * 50_000_000)
