"""The section `parallel` of a spec: its values in the lock, and its errors."""

import pytest

from ratc import compiler, facts
from ratc.compiler import File, Inputs
from ratc.diagnostics import Severity

SPEC = """\
experiment_name: demo
data: {{data_dir: data}}
training: {{batch_size: 2, target_batch_size: 16, {training}}}
parallel: {{{parallel}}}
resources: {{gpu: a100-80, num_gpus: {gpus}}}
"""
MACHINE = facts.Machine(gpus=0, card=None, cpus=2, memory_bytes=None, source="this machine")


def resolved(parallel: str, training: str = "", gpus: int = 4):
    """The plan of a spec with this section, and what was found."""
    text = SPEC.format(parallel=parallel, training=training, gpus=gpus)
    settings, found = compiler.analyse(Inputs(File("spec.yaml", text.encode())))
    if settings is None:
        return None, found
    plan, more = compiler.plan(settings, None, MACHINE)
    return plan, (*found, *more)


def values(plan):
    return {path: value.value for path, value in plan.values.items() if path.startswith("fsdp2.")}


def test_full_sharding_is_over_all_processes():
    plan, found = resolved("strategy: fsdp2")
    assert not found
    assert values(plan) == {
        "fsdp2.shard": "full",
        "fsdp2.shard_size": 4,
        "fsdp2.wrap": None,
        "fsdp2.offload": False,
        "fsdp2.weights": "fp32",
    }
    assert plan.values["engine.deepspeed"].value is False
    assert plan.values["checkpoint.asynchronous"].value is False


@pytest.mark.parametrize(("strategy", "deepspeed"), [("ddp", False), ("deepspeed", True), ("auto", True)])
def test_other_strategies_have_no_fsdp2_values(strategy, deepspeed):
    """Nothing is predicted for a given micro-batch, so `auto` compares nothing."""
    plan, found = resolved(f"strategy: {strategy}")
    assert not found
    assert values(plan) == {}
    assert plan.values["engine.deepspeed"].value is deepspeed
    assert plan.values["parallel.strategy"].value == ("deepspeed" if strategy == "auto" else strategy)


def test_spec_without_the_parallel_section_uses_deepspeed():
    plan, _ = resolved("")
    assert "parallel.strategy" not in plan.values
    assert plan.values["engine.deepspeed"].value is True


@pytest.mark.parametrize(("asked", "size"), [("shard_size: 2", 2), ("shard_size: 4", 4)])
def test_hybrid_sharding_uses_the_given_group_size(asked, size):
    plan, found = resolved(f"strategy: fsdp2, shard: hybrid, {asked}", gpus=8)
    assert not found
    assert values(plan)["fsdp2.shard_size"] == size


@pytest.mark.parametrize(
    ("asked", "gpus", "help"),
    [
        ("shard_size: 3", 8, "`shard_size` may be 2, 4"),
        ("shard_size: 8", 8, "`shard_size` may be 2, 4"),
        ("shard_size: 16", 8, "`shard_size` may be 2, 4"),
        ("shard_size: 3", 4, "use `shard_size: 2`"),
        ("wrap: auto", 8, "`shard_size` may be 2, 4"),  # one node
        ("shard_size: 2", 2, "or use `shard: full`"),
    ],
)
def test_group_size_that_does_not_divide_the_processes_is_refused(asked, gpus, help):
    plan, found = resolved(f"strategy: fsdp2, shard: hybrid, {asked}", gpus=gpus)
    assert plan is None
    assert [one.code for one in found] == ["R364"]
    assert found[0].helps[0] == help


@pytest.mark.parametrize(
    ("training", "betas"),
    [("lion", [0.9, 0.99]), ("lion, betas: [0.9, 0.999]", [0.9, 0.999]), ("adamw", [0.9, 0.999])],
)
def test_sharded_lion_has_its_own_default_betas(training, betas):
    plan, found = resolved("strategy: fsdp2", f"optimizer: {training}")
    assert not found
    assert plan.values["training.betas"].value == betas


@pytest.mark.parametrize("optimizer", ["lion", "lion_8bit", "adamw_8bit"])
def test_deepspeed_with_an_unpredicted_optimizer_is_refused(optimizer):
    plan, found = resolved("strategy: deepspeed", f"optimizer: {optimizer}")
    assert plan is None
    assert [one.code for one in found] == ["R362"]
    plan, found = resolved("", f"optimizer: {optimizer}")
    assert not found
    assert plan.values["engine.deepspeed"].value is False


@pytest.mark.parametrize(
    ("parallel", "training", "line"),
    [
        ("strategy: fsdp2", "optimizer: muon", "optimizer"),
        ("strategy: fsdp2", "optimizer: adafactor", "needs whole weights"),
        ("strategy: fsdp2", "optimizer: lion_8bit", "takes no shards"),
        ("strategy: fsdp2", "precision: fp16", "fp16"),
        ("strategy: fsdp2", "compile: true", "compiled graphs"),
        ("strategy: fsdp2, mixed_precision: bf16", "precision: fp32", "fp32"),
        ("strategy: fsdp2, offload: true", "", ""),
    ],
)
def test_settings_that_fsdp2_does_not_support_are_refused(parallel, training, line):
    gpus = 4 if line else 0
    plan, found = resolved(parallel, training, gpus)
    if not line:  # one process on the CPU
        assert plan is not None
        assert [one.code for one in found] == ["R307"]
        return
    assert plan is None
    assert [one.code for one in found] == ["R363"]
    assert line in found[0].message


def test_fsdp2_on_one_process_becomes_ddp_with_a_warning():
    plan, found = resolved("strategy: fsdp2", gpus=1)
    assert [(one.code, one.severity) for one in found] == [("R307", Severity.WARNING)]
    assert plan.values["parallel.strategy"].value == "ddp"
    assert values(plan) == {}


@pytest.mark.parametrize(
    ("parallel", "training", "code"),
    [
        ("strategy: fsdp2", "deepspeed: true", "R201"),
        ("strategy: deepspeed", "deepspeed: false", "R201"),
        ("strategy: ddp, shard: grads", "", "R207"),
        ("shard: full", "", "R207"),
        ("strategy: fsdp2, shard_size: 2", "", "R207"),
        ("strategy: fsdp2", "zero_stage: 2", "R207"),
        ("strategy: ddp", "offload_optimizer: true", "R207"),
    ],
)
def test_contradictory_or_ineffective_parallel_keys_are_reported(parallel, training, code):
    _, found = resolved(parallel, training)
    assert code in {one.code for one in found}
