"""A range of nodes: every listed count keeps the global batch, and excluded counts are reported."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratc import compiler
from ratc.comparison import effects
from ratc.compiler import File, Inputs
from ratc.diagnostics import Severity
from ratc.elastic_plan import MOST_REASONS, OWN
from ratc.facts import Machine
from ratc.plan import Plan
from ratc.program import is_program
from ratc.spec.keys import Effect
from ratc.targets import deepspeed
from tests.effort import examples

MACHINE = Machine(gpus=0, card=None, cpus=64, memory_bytes=16 << 30, source="this machine")
LOOP = "experiment_name: e\ndata: {data_dir: d}\n"
PROGRAM = 'experiment_name: e\nentrypoint: {script: t.py, args: ["${micro_batch_size}", "${epochs}"]}\n'


def resolved(text: str, decision=None):
    settings, found = compiler.analyse(Inputs(File("spec.yaml", text.encode())))
    if settings is None:
        return None, found
    plan, more = compiler.plan(settings, None, MACHINE, decision)
    return plan, (*found, *more)


def spec(fewest: int, most: int, gpus: int, training: str, head: str = LOOP, more: str = "") -> str:
    nodes = f"{{min: {fewest}, max: {most}}}"
    return f"{head}training: {{{training}}}\nresources: {{nodes: {nodes}, gpus_per_node: {gpus}, gpu: h100}}\n{more}"


def elastic_row(plan: Plan, nodes: int) -> dict[str, object]:
    paths = {name: f"elastic.{nodes}.{name}" for name in (path.rpartition(".")[2] for path in OWN)}
    return {name: plan.values[path].value for name, path in paths.items() if path in plan.values}


@settings(max_examples=examples(200))
@given(
    fewest=st.integers(1, 6),
    more=st.integers(1, 12),
    gpus=st.sampled_from([0, 1, 2, 4, 8]),
    batch=st.integers(1, 1500),
    micro=st.none() | st.integers(1, 8),
    program=st.booleans(),
)
def test_plan_lists_only_node_counts_that_keep_the_global_batch(fewest, more, gpus, batch, micro, program):
    training = f"target_batch_size: {batch}" + (f", batch_size: {micro}" if micro else "")
    most, each = fewest + more, max(gpus, 1)
    plan, found = resolved(spec(fewest, most, gpus, training, PROGRAM if program else LOOP))
    able = [nodes for nodes in range(fewest, most + 1) if batch % (nodes * each * (micro or 1)) == 0]
    if fewest not in able:
        assert plan is None
        (error,) = (one for one in found if one.severity is Severity.ERROR)
        assert error.code == "R369"
        assert (", ".join(map(str, able[:1])) in error.notes[0]) if able else "no count" in error.notes[0]
        return
    assert plan is not None, found
    assert [size.values["parallel.nodes"].value for size in plan.sizes] == able
    assert ("R370" in [one.code for one in found]) == (len(able) <= more)
    for nodes, size in zip(able, plan.sizes, strict=True):
        row = elastic_row(plan, nodes)
        assert row["world_size"] == nodes * each
        assert row["micro_batch_size"] * row["gradient_accumulation_steps"] * row["world_size"] == batch
        assert size.values["training.global_batch_size"].value == batch
        assert row["micro_batch_size"] == size.values["training.micro_batch_size"].value
    assert plan.values["parallel.nodes"].value == able[-1]
    assert is_program(plan.settings) == program


def test_range_of_one_node_count_equals_a_fixed_count():
    plan, _ = resolved(spec(2, 2, 4, "target_batch_size: 64"))
    other, _ = resolved(spec(2, 2, 4, "target_batch_size: 64").replace("{min: 2, max: 2}", "2"))
    assert plan.sizes == ()
    assert {path: value.value for path, value in plan.values.items()} == {
        path: value.value for path, value in other.values.items()
    }


def test_excluded_node_counts_are_listed_with_their_reasons():
    sharded = "parallel: {strategy: fsdp2, shard: hybrid, shard_size: 8}\n"
    _, found = resolved(spec(4, 10, 4, "target_batch_size: 1920, batch_size: 1", more=sharded))
    (warning,) = (one for one in found if one.code == "R370")
    assert "5, 7 and 9 cannot" in warning.message
    assert warning.notes == (
        "5 nodes: groups of 8 processes (`shard_size`) cannot be formed of 20 processes",
        "7 nodes: global batch 1920 cannot be split over 28 GPUs and micro-batches of 1",
        "9 nodes: global batch 1920 cannot be split over 36 GPUs and micro-batches of 1",
    )
    _, found = resolved(spec(1, 100, 4, "target_batch_size: 1920, batch_size: 1"))
    (warning,) = (one for one in found if one.code == "R370")
    assert len(warning.notes) == MOST_REASONS


def test_the_fewest_nodes_decide_the_attention_of_all():
    """With one node's micro-batch of 8 full attention does not fit, with that of four nodes, 4, it does."""
    head = "experiment_name: e\ndata: {data_dir: d, image_size: 128}\nmodel: {num_blocks: 2, feature_dims: 32}\n"
    alone, _ = resolved(spec(4, 4, 4, "target_batch_size: 64", head))
    assert alone.values["model.attention_memory"].value == "full"
    plan, found = resolved(spec(1, 4, 4, "target_batch_size: 64", head))
    assert plan is not None, found
    assert [one.values["parallel.nodes"].value for one in plan.sizes] == [1, 2, 4]
    assert {one.values["model.attention_memory"].value for one in (plan, *plan.sizes)} == {"fused"}
    assert plan.values["model.attention_memory"].reason.endswith("with 8 samples")


def test_elastic_plan_excludes_deepspeed_and_fsdp2_on_one_process():
    plan, _ = resolved(spec(1, 4, 4, "target_batch_size: 64"))
    assert plan.values["engine.deepspeed"].value is False
    assert plan.values["engine.deepspeed"].inputs == ("spec:resources.nodes.min",)
    plan, found = resolved(spec(1, 4, 1, "target_batch_size: 64", more="parallel: {strategy: fsdp2}\n"))
    assert plan is None
    (error,) = (one for one in found if one.code == "R369")
    assert "`parallel.strategy` would be ddp instead of fsdp2" in error.message


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ("{min: 4, max: 2}", "R371"),
        ("{min: 1, max: 5000}", "R371"),
        ("{min: 1, max: 1000000000}", "R371"),
        ("{min: 2}", "R105"),
        ("{min: 0, max: 2}", "R104"),
        ("{min: 1, max: 2, step: 2}", "R101"),
        ("{}", "R105"),
        ("[1, 2]", "R102"),
        ("null", "R102"),
        ("2-8", "R102"),
    ],
)
def test_invalid_node_range_is_refused(nodes, code):
    text = spec(1, 2, 4, "target_batch_size: 64").replace("{min: 1, max: 2}", nodes)
    plan, found = resolved(text)
    assert plan is None
    assert {one.code for one in found} == {code}


@pytest.mark.parametrize(
    ("training", "more", "stage"),
    [
        ("deepspeed: true", "", 2),
        ("zero_stage: 3", "parallel: {strategy: deepspeed}\n", 3),
        ("zero_stage: 1, offload_optimizer: true", "parallel: {strategy: deepspeed}\n", 1),
    ],
)
def test_zero_shards_on_every_node_count_in_the_order_of_the_weights(training, more, stage):
    plan, found = resolved(spec(2, 4, 4, f"target_batch_size: 96, {training}", more=more))
    assert not [one for one in found if one.severity is Severity.ERROR]
    assert [size.values["parallel.nodes"].value for size in plan.sizes] == [2, 3, 4]
    assert {size.values["engine.zero_stage"].value for size in plan.sizes} == {stage}
    assert deepspeed.config(plan)["zero_optimization"]["round_robin_gradients"] is False
    fixed, _ = resolved(spec(4, 4, 4, f"target_batch_size: 96, {training}", more=more))
    assert deepspeed.config(fixed)["zero_optimization"]["round_robin_gradients"] is (stage == 2)


def test_zero_stage_0_is_refused_for_a_range():
    plan, found = resolved(spec(2, 4, 4, "target_batch_size: 96, deepspeed: true, zero_stage: 0"))
    assert plan is None
    assert [one.code for one in found] == ["R372"]


def test_another_world_size_keeps_checkpoints_of_zero_if_both_plans_are_elastic():
    text = spec(2, 4, 4, "target_batch_size: 96, deepspeed: true")
    plan, _ = resolved(text)
    larger, _ = resolved(text.replace("max: 4", "max: 6"))
    fixed, _ = resolved(spec(4, 4, 4, "target_batch_size: 96, deepspeed: true"))

    def breaks_resume(new: Plan) -> bool:
        return Effect.RESUME in effects.of_plan("parallel.world_size", plan.values, new.values)[0]

    assert (breaks_resume(larger), breaks_resume(fixed)) == (False, True)
