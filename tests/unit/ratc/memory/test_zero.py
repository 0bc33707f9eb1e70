"""ZeRO and DDP in bytes: against the field's formulas, and block by block for a model counted on paper."""

import pytest

from ratc.memory.allocator import rounded
from ratc.memory.compose import compose
from ratc.memory.estimate import Predictor, breakdown, live_peak, replay
from ratc.memory.terms import Device, outside
from ratc.memory.trace import BadTrace, parse
from ratc.memory.zero import (
    BYTES,
    SUB_GROUP,
    Strategy,
    bucket_elements,
    gradient_sizes,
    layout,
    owned_elements,
    partition,
    pinned,
)
from ratc.memory.zero_events import COMMUNICATION
from tests.helpers.made_traces import MIB, layers, trace

RANKS = 8


def deepspeed(stage, precision="bf16", **more):
    return Strategy("deepspeed", more.pop("ranks", RANKS), stage, precision=precision, **more)


def composed(model, strategy):
    return compose(model, layout(model, strategy))


def names(program, op):
    return program.modules[program.module[op]]


def events(program, begin=0, end=None):
    """(+ or -, name or kind, MiB) of what a program does."""
    told = []
    for op in program.ops[begin:end]:
        block = op if op >= 0 else ~op
        name = names(program, block)
        name = name.strip("()") if name.startswith("(") else program.kinds[program.kind[block]]
        told.append(("+" if op >= 0 else "-", name, program.fixed[block] / MIB))
    return told


def alive(program, index=None):
    """The blocks that are alive before an op, by default after the last."""
    found = set()
    for op in program.ops[:index]:
        found.symmetric_difference_update({op if op >= 0 else ~op})
    return found


def states(model, strategy):
    """Bytes of weights, gradients and optimizer that live from one step to the next."""
    program = composed(model, strategy)
    wanted = {program.kinds.index(kind) for kind in ("parameter", "gradient", "optimizer")}
    return sum(program.fixed[op] for op in alive(program) if program.kind[op] in wanted)


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
        (3, "fp32", 4 / RANKS + 8 / RANKS + 4 / RANKS),  # the partition of the weights is its own master
    ],
)
def test_model_states_take_the_bytes_per_parameter_of_the_zero_paper(stage, precision, persistent):
    model = trace(optimizer=False, width=BYTES[precision])
    assert states(model, deepspeed(stage, precision)) == pytest.approx(persistent * model.trainable, rel=1e-6)


def test_stage_0_keeps_whole_states_on_every_rank():
    model = trace(optimizer=False, width=2)
    found = layout(model, deepspeed(0))
    assert sum(block.bytes_ for block in found.persistent) == 12 * model.trainable
    assert states(model, deepspeed(0)) == 14 * model.trainable  # with the weights
    at_update = {block.name: block.bytes_ for block in found.update}
    assert at_update["fp32 gradients"] == 4 * model.trainable


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_moves_the_optimizer_to_the_host(stage):
    model = trace(optimizer=False, width=2)
    away = deepspeed(stage, offload_optimizer=True)
    here, there = layout(model, deepspeed(stage)), layout(model, away)
    part = partition(model.trainable, RANKS)
    program = composed(model, away)
    assert not [op for op in alive(program) if program.kinds[program.kind[op]] == "optimizer"]
    moved = states(model, deepspeed(stage)) - states(model, away)
    assert moved == 12 * part + (2 * part if stage == 3 else 0)
    assert here.host_bytes == 0
    # Master weights and gradients in fp32 are page-locked, moments are not, and the bit16 copy is.
    assert there.host_bytes == 2 * pinned(4 * part) + 8 * part + pinned(2 * part)


def test_accumulation_adds_a_partition_of_gradients_between_micro_batches():
    host = []
    for several in (False, True):
        model = trace(optimizer=False, width=2, accumulating=several)
        strategy = deepspeed(2, accumulates=several, bucket=1 << 20)
        told = [item for item in events(composed(model, strategy)) if item[1] == "gradient partition"]
        assert [sign for sign, *_ in told] == (["+", "+", "-", "-"] if several else ["+", "-"]) * 2
        host.append(layout(model, deepspeed(1, offload_optimizer=True, accumulates=several)).host_bytes)
    assert host[1] - host[0] == pinned(2 * partition(model.trainable, RANKS))


def test_stage_1_reduces_gradients_only_with_the_last_micro_batch():
    model = trace(count=3, optimizer=False, width=2, accumulating=True)
    program = composed(model, deepspeed(1, accumulates=True, ranks=1, bucket=6 * MIB))
    told = [item[:2] for item in events(program, program.first, program.start) if item[1] in SHOWN]
    backward = [("+", "gradient")] * 3 + [("+", "gradient"), ("-", "gradient"), ("-", "gradient")] * 2
    # The bucket has room for three; nothing is copied out of it before the end.
    backward += [("+", "gradient"), ("-", "gradient"), ("-", "gradient"), ("+", "gradient partition")]
    assert told == [backward[0], *[("+", "reduce bucket")] * 2, *backward[1:], *[("-", "reduce bucket")] * 2, *UPDATE]


#: What the tests of the order look at; the update of one group, in the first step.
SHOWN = {"gradient", "reduce bucket", "gradient partition", "averaged gradients", "fp32 gradients", "exp_avg"}
UPDATE = [
    ("+", "averaged gradients"),
    ("+", "fp32 gradients"),
    ("-", "averaged gradients"),
    ("-", "gradient partition"),
    ("+", "exp_avg"),
    ("-", "fp32 gradients"),
]


def test_stages_1_and_2_allocate_in_the_recorded_order_of_deepspeed():
    """As recorded on a GPU: benchmarks/memory/data/*/events/*-zero-1.json.xz."""
    content = layers(count=3, optimizer=False, width=2, weight=4 * MIB)
    content["parameters"]["groups"] = [0, 0, 1]
    model = parse(content)
    for stage in (1, 2):
        program = composed(model, deepspeed(stage, ranks=1, bucket=4 * MIB))
        assert events(program, 3, program.first) == [
            ("+", "flat weights", 8),
            ("-", "parameter", 4),
            ("-", "parameter", 4),
            ("+", "copy of the partition", 8),
            ("+", "fp32 weights", 16),
            ("-", "copy of the partition", 8),
            ("+", "flat weights", 4),
            ("-", "parameter", 4),
            ("+", "copy of the partition", 4),
            ("+", "fp32 weights", 8),
            ("-", "copy of the partition", 4),
            ("+", "fp32 gradients", 16),
            ("+", "fp32 gradients", 8),
            ("-", "fp32 gradients", 16),
            ("-", "fp32 gradients", 8),
        ]
        assert program.flushes == {3, 9}
        first = [item for item in events(program, program.first, program.start) if item[1] in SHOWN | {NORM}]
        assert first == [
            ("+", "gradient", 4),
            ("+", "reduce bucket", 8),
            ("+", "reduce bucket", 8),
            ("-", "gradient", 4),
            ("+", "gradient", 4),
            ("-", "gradient", 4),
            ("+", "gradient", 4),
            ("+", "gradient partition", 12),  # the bucket holds two, and the third waits
            ("-", "gradient", 4),
            ("-", "reduce bucket", 8),
            ("-", "reduce bucket", 8),
            *[(sign, NORM, 16) for _ in range(3) for sign in "+-"],
            ("+", "averaged gradients", 8),
            ("+", "fp32 gradients", 16),
            ("-", "averaged gradients", 8),
            ("+", "exp_avg", 16),
            ("-", "fp32 gradients", 16),
            ("+", "averaged gradients", 4),
            ("+", "fp32 gradients", 8),
            ("-", "averaged gradients", 4),
            ("-", "gradient partition", 12),
            ("+", "exp_avg", 8),
            ("-", "fp32 gradients", 8),
        ]
        beside = {names(program, op) for op in program.streams}
        assert beside == {"(gradient partition)"}
        assert set(program.streams.values()) == {COMMUNICATION}
        assert not composed(model, deepspeed(stage, ranks=1, overlap=False)).streams


NORM = "norm of a gradient"


def test_stage_3_allocates_in_the_recorded_order_of_deepspeed():
    """As recorded on a GPU: benchmarks/memory/data/*/events/*-zero-3.json.xz."""
    content = layers(count=2, optimizer=False, width=2, weight=4 * MIB)
    content["parameters"]["groups"] = [0, 1]
    model = parse(content)
    program = composed(model, deepspeed(3, ranks=1, bucket=5 * MIB))
    part, copy, master = "partition of the weights", "copy of the partition", "fp32 weights"
    assert events(program, 2, program.first) == [
        ("+", part, 4),
        ("-", "parameter", 4),
        ("+", part, 4),
        ("-", "parameter", 4),
        ("-", part, 4),
        ("-", part, 4),
        ("+", part, 8),
        ("+", copy, 8),
        ("+", master, 8),
        ("+", copy, 8),
        ("-", copy, 8),
        ("+", master, 8),
        ("-", copy, 8),
        ("+", "fp32 gradients", 8),
        ("-", "fp32 gradients", 8),
        ("+", "reduce bucket", 10),
        ("+", "partition of the gradients", 8),
        *[(sign, "gathered weights", 4) for _ in range(2) for sign in "+-"],
    ]
    assert program.flushes == {8}
    first = [
        item[:2] for item in events(program, program.first, program.start) if item[1] in SHOWN | {"joined gradients"}
    ]
    update = [item for item in UPDATE if item[1] != "gradient partition"]
    joined = [("+", "joined gradients"), ("-", "joined gradients")]
    made = [("+", "gradient"), ("-", "gradient")]
    assert first == [*made, *made, *joined, *update, *update]
    assert {names(program, op) for op in program.streams} == {"(joined gradients)"}
    # A bucket with one gradient is reduced where it lies.
    assert not composed(model, deepspeed(3, ranks=1, bucket=3 * MIB)).streams


def test_several_ranks_add_gathered_weights_and_flattened_buckets():
    model = trace(count=2, optimizer=False, width=2)
    told = events(composed(model, deepspeed(3)))
    assert told.count(("+", "parameter", 4.0)) == 2 + 2 * 2  # once built, once in each step
    assert layout(model, deepspeed(3)).notes
    assert not layout(model, deepspeed(3, ranks=1)).notes
    assert {names(program, op) for program in [composed(model, deepspeed(2))] for op in program.streams} == {
        "(gradient partition)",
        "(flattened bucket)",
    }


def test_frozen_parameters_are_partitioned_only_in_stage_3():
    content = layers(count=3, optimizer=False, width=2, weight=4 * MIB)
    content["parameters"] |= {"groups": [0, -1, 0], "trainable": 2 * 2 * MIB}
    model = parse(content)
    for stage, expected in ((1, [4 * MIB, 8 * MIB]), (3, [2 * MIB, 4 * MIB])):
        program = composed(model, deepspeed(stage, ranks=2))
        weights = [program.fixed[op] for op in alive(program) if program.kinds[program.kind[op]] == "parameter"]
        assert sorted(weights) == expected


@pytest.mark.parametrize("groups", [[0], [0, 0, 0, -2], "0000", [0, 0, 0, None]])
def test_parameter_groups_that_do_not_match_the_parameters_are_refused(groups):
    content = layers(count=4)
    content["parameters"]["groups"] = groups
    with pytest.raises(BadTrace, match="groups of 4 parameters"):
        parse(content)


@pytest.mark.parametrize(("elements", "ranks", "expected"), [(1, 1, 2), (16, 8, 2), (17, 8, 4), (100, 3, 34)])
def test_partitions_are_padded_to_two_elements_per_rank(elements, ranks, expected):
    assert partition(elements, ranks) == expected
    assert partition(elements, ranks) * ranks >= elements


@pytest.mark.parametrize(
    ("parameters", "ranks", "expected"),
    [
        ([10, 10, 10, 10], 1, 40),
        ([10, 10, 10, 10], 4, 10),
        ([30, 10], 4, 30),  # one parameter in three partitions, whole in each
        ([6, 8, 6], 2, 14),
        ([0, 4], 2, 4),
    ],
)
def test_rank_counts_the_whole_of_a_parameter_that_it_shares(parameters, ranks, expected):
    assert owned_elements(parameters, ranks, round_robin=False) == expected


def test_round_robin_distributes_parameters_in_turn():
    # In order: 8 with 2 | 2 with 8; in turn, 8 and 2 of every other one go together.
    assert owned_elements([8, 2, 2, 8], 2, round_robin=True) == 10
    assert owned_elements([8, 8, 2, 2], 2, round_robin=False) == 16
    assert owned_elements([8, 8, 2, 2], 2, round_robin=True) == 10


@pytest.mark.parametrize(("stage", "round_robin", "mebi"), [(2, True, 10), (2, False, 16), (1, True, 16)])
def test_parameters_are_dealt_out_only_in_stage_2_and_not_for_a_range_of_nodes(stage, round_robin, mebi):
    content = layers(count=4, optimizer=False, width=2, weight=5 * MIB)
    for event, size in zip(content["events"], (8, 8, 2, 2), strict=False):
        event[1] = 2 * size * MIB
    found = layout(parse(content), deepspeed(stage, ranks=2, round_robin=round_robin))
    assert found.owned == mebi * MIB


def test_large_parameter_groups_are_updated_in_sub_groups():
    content = layers(count=3, optimizer=False, width=2, weight=1200 * MIB)
    model = parse(content)
    (group,) = layout(model, deepspeed(3, ranks=1)).groups
    assert group.parts == (2 * 600 * MIB, 600 * MIB)
    assert group.parts[0] > SUB_GROUP > group.parts[1]
    assert layout(model, deepspeed(2, ranks=1)).groups[0].parts == (1800 * MIB,)


def test_buckets_are_no_larger_than_the_model():
    assert bucket_elements(1_000) == 1_000
    assert bucket_elements(10**10) == 50_000_000
    assert bucket_elements(0) == 1


@pytest.mark.parametrize(("size", "taken"), [(0, 0), (1, 1), (3, 4), (4096, 4096), (4097, 8192)])
def test_page_locked_memory_is_rounded_to_a_power_of_two(size, taken):
    assert pinned(size) == taken


def test_overlap_doubles_the_reduce_bucket():
    model = trace(optimizer=False, width=2)
    for overlap, count in ((False, 1), (True, 2)):
        told = events(composed(model, deepspeed(2, overlap=overlap, bucket=MIB)))
        assert told.count(("+", "reduce bucket", 2.0)) == 2 * count  # in both steps


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


@pytest.mark.parametrize(
    ("strategy", "groups"),
    [
        (Strategy("deepspeed"), 0),
        (Strategy("torch", 4), 1),
        (Strategy("deepspeed", 4, 2), 2),  # and its clone
        (Strategy("fsdp2", 4, shards=4), 1),
        (Strategy("fsdp2", 4, shard="hybrid", shards=2), 3),  # all, those of a group, and those of a shard
    ],
)
def test_each_process_group_has_channels_of_nccl(strategy, groups):
    assert strategy.process_groups == groups
    for capability, mebi in (("9.0", 1024), ("10.3", 1024), ("8.9", 256)):
        terms = outside(Device("a card", 80 << 30, capability), strategy.process_groups)
        assert sum(term.bytes_ for term in terms if "NCCL" in term.name) == groups * mebi * MIB


def test_one_process_adds_no_events():
    model = trace()
    assert layout(model, Strategy()).persistent == ()
    same = compose(model, layout(model, Strategy()))
    assert same.ops == model.program.ops
    assert same.sizes(3) == model.program.sizes(3)


@pytest.mark.parametrize(
    ("strategy", "complaint"),
    [(Strategy("deepspeed", 2, 4), "no stage 4"), (Strategy("deepspeed", 2, 0, True), "from ZeRO stage 1 on")],
)
def test_strategy_that_deepspeed_does_not_support_is_refused(strategy, complaint):
    with pytest.raises(ValueError, match=complaint):
        layout(trace(), strategy)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("ranks", [1, RANKS])
@pytest.mark.parametrize("accumulating", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_composed_step_frees_what_it_allocates_and_can_repeat(stage, accumulating, ranks, precision, offload):
    if offload and not stage:
        pytest.skip("the optimizer is offloaded from stage 1 on")
    model = trace(optimizer=False, width=BYTES[precision], accumulating=accumulating)
    strategy = deepspeed(
        stage, precision, accumulates=accumulating, bucket=1 << 20, ranks=ranks, offload_optimizer=offload
    )
    program = composed(model, strategy)
    living = set()
    at_start = None
    for index, op in enumerate(program.ops):
        if index == program.start:
            at_start = frozenset(living)
        if op >= 0:
            assert op not in living
            living.add(op)
        else:
            living.remove(~op)
    # Nothing of a step is left behind: the second began with what it ended with, so every later one is like it.
    if ranks == 1 or stage < 3:
        assert at_start == living
    else:
        assert at_start == living - {op for op in at_start ^ living if program.kinds[program.kind[op]] == "parameter"}
    kinds = {program.kinds[program.kind[op]] for op in living}
    assert kinds <= {"parameter", "optimizer", "gradient", "bucket"}
    assert replay(program, 2).fits
    assert replay(program, 2, expandable=True).fits


def test_gradients_are_freed_after_they_are_copied_to_a_bucket_or_reduced():
    """8 layers of 4 MiB: one lives at a time, whether a bucket has room for it or not; without ZeRO all of them do."""
    model = trace(count=8, optimizer=False, width=2, activation=0, temporary=0)

    def most(stage, bucket):
        program = composed(model, deepspeed(stage, bucket=bucket))
        traced = len(model.program.fixed)
        living = highest = 0
        for op in program.ops:
            number = op if op >= 0 else ~op
            if number < traced and program.kinds[program.kind[number]] == "gradient":
                living += program.fixed[number] * (1 if op >= 0 else -1)
                highest = max(highest, living)
        return highest

    elements = 4 * MIB // 2  # a bucket of one layer
    assert most(0, elements) == 32 * MIB
    for stage in (1, 2, 3):
        assert most(stage, elements) == 4 * MIB
        assert most(stage, 100 * elements) == 4 * MIB
        # A gradient that no bucket holds waits until the next one comes.
        assert most(stage, elements // 2) == 8 * MIB


def test_higher_stages_take_less_memory_if_states_dominate():
    model = trace(count=8, weight=64 * MIB, optimizer=False, width=2, activation=1, temporary=1)
    peaks = [live_peak(composed(model, deepspeed(stage, bucket=1_000_000)), 1) for stage in (0, 1, 2, 3)]
    assert peaks[0] > peaks[1] >= peaks[2]
    # What is gathered of a model this small stays for the whole step: stage 3 holds its own part of the weights beside.
    assert peaks[3] <= peaks[2] + 2 * partition(model.trainable, RANKS)


def test_weights_are_flattened_on_the_host_if_both_copies_do_not_fit():
    """`flatten_on_accelerator` of stage_1_and_2.py: what decides is the free memory of the card."""
    model = trace(count=8, weight=64 * MIB, optimizer=False, width=2, activation=1, temporary=1)
    prediction = Predictor(model, deepspeed(2, ranks=64, bucket=1_000_000), 0.0)
    free = prediction.unbounded(1)
    assert free.peak_reserved_bytes >= 1024 * MIB  # both copies
    assert prediction.lowest(1) < 900 * MIB
    tight = prediction.at(900 * MIB, 1)
    assert tight is not None
    assert tight.peak_reserved_bytes <= 900 * MIB
    assert not replay(prediction.program, 1, 500 * MIB).fits


def test_breakdown_names_the_memory_that_deepspeed_adds():
    model = trace(optimizer=False, width=2)
    program = composed(model, deepspeed(2))
    first_gradient = next(
        index
        for index, op in enumerate(program.ops)
        if index > program.start and op >= 0 and names(program, op) == "(gradient partition)"
    )
    parts = breakdown(program, 1, first_gradient)
    assert parts.by_module["(fp32 weights)"] == 4 * partition(model.trainable, RANKS)
    assert parts.by_kind["bucket"] == 2 * rounded(2 * 50_000_000)
