"""The micro-batch and the memory of every node count of an elastic plan, on real traces and a made-up card."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ratc.cli import main
from tests.unit.ratc.fitting.test_strategies import HEAVY

pytestmark = pytest.mark.slow

SPEC = """experiment_name: small
data: {{data_dir: data, image_size: 32, channels: 1}}
model: {{feature_dims: {features}, num_blocks: 2, num_heads: 2, iters: 1, sga_kernel_size: 5, stride: 4}}
training: {{target_batch_size: {batch}}}
parallel: {{strategy: {strategy}}}
resources: {{nodes: {nodes}, gpus_per_node: 4}}
"""
FACTS = "gpus_per_node: 4\ngpu: made-up\ngpu_memory_mib: {memory}\ncompute_capability: '8.0'\ncpus: 16\n"


@pytest.fixture
def compiled(tmp_path, monkeypatch, capsys):
    """Compile a spec for Slurm on cards of so many MiB; returns the status, the lock, and the messages."""
    monkeypatch.chdir(tmp_path)

    def run(nodes, strategy="fsdp2", memory=80_000, features=16, batch=512, spec=SPEC):
        Path("spec.yaml").write_text(spec.format(nodes=nodes, strategy=strategy, features=features, batch=batch))
        Path("facts.yaml").write_text(FACTS.format(memory=memory))
        status = main(["compile", "spec.yaml", "--facts", "facts.yaml", "--target", "slurm", "-o", "out"])
        lock = yaml.safe_load(Path("out/lock.yaml").read_text()) if status == 0 else {}
        return status, lock, capsys.readouterr().err

    return run


def split(lock):
    """What a row of a lock for one number of nodes would hold."""
    training, memory = lock["training"], lock["memory"]
    return {
        "world_size": lock["parallel"]["world_size"],
        "micro_batch_size": training["micro_batch_size"],
        "gradient_accumulation_steps": training["gradient_accumulation_steps"],
        "prefetch_factor": lock["data"]["prefetch_factor"],
        "peak_allocated_bytes": memory["peak_allocated_bytes"],
        "peak_reserved_bytes": memory["peak_reserved_bytes"],
    }


def structure(lock):
    """What all rows of a lock have in common: how a step is computed, but not over how many processes."""
    sharded = {**(lock.get("fsdp2") or {}), "shard_size": None}
    training = {key: lock["training"][key] for key in ("activation_checkpointing", "allocator")}
    return lock["model"], lock["engine"], sharded, training


@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_with_enough_memory_each_elastic_row_equals_the_fixed_plan(strategy, compiled):
    status, lock, said = compiled("{min: 1, max: 4}", strategy)
    assert status == 0, said
    assert list(lock["elastic"]) == ["1", "2", "4"]
    assert lock["elastic"]["4"] == split(lock)
    for nodes, row in lock["elastic"].items():
        status, alone, said = compiled(nodes, strategy)
        assert status == 0, said
        assert split(alone) == row
        assert structure(alone) == structure(lock)
    assert len({row["micro_batch_size"] for row in lock["elastic"].values()}) == 3


def test_with_little_memory_the_smallest_node_count_decides_the_step(compiled):
    status, lock, said = compiled("{min: 1, max: 4}", memory=2000)
    assert status == 0, said
    status, fewest, said = compiled("1", memory=2000)
    assert status == 0, said
    assert split(fewest) == lock["elastic"]["1"]
    assert structure(fewest) == structure(lock)
    status, most, said = compiled("4", memory=2000)
    assert status == 0, said
    assert structure(most) != structure(lock)  # alone they would not need it


def test_a_given_micro_batch_gets_leaner_attention_before_blocks_are_recomputed(compiled):
    """With 2,000 MiB 128 samples need attention without maps, which costs no second pass."""
    given = "512, batch_size: 128, activation_checkpointing: auto"
    status, lock, said = compiled("1", "ddp", memory=2000, batch=given)
    assert status == 0, said
    assert (lock["model"]["attention_memory"], lock["training"]["activation_checkpointing"]) == ("fused", False)
    text = Path("out/lock.yaml").read_text()
    assert re.search(
        r"attention_memory: fused  # full attention needs [\d.]+ GiB at micro-batch 128 and does not", text
    )
    assert compiled("1", "ddp", memory=80_000, batch=given)[1]["model"]["attention_memory"] == "full"


def test_reason_to_recompute_blocks_has_the_figures_of_the_fewest_nodes(compiled):
    Path("net.py").write_text(HEAVY)
    spec = re.sub("model: .*", "model: {{name: 'net:Net'}}", SPEC.replace("image_size: 32", "image_size: 64"))
    status, lock, said = compiled(
        "{min: 1, max: 4}", "fsdp2", 3000, batch="64, activation_checkpointing: auto", spec=spec
    )
    assert status == 0, said
    assert len({row["micro_batch_size"] for row in lock["elastic"].values()}) > 1
    (why,) = re.findall("activation_checkpointing:.*# on 1 node, the fewest: (.*)", Path("out/lock.yaml").read_text())
    assert f"with it micro-batch {lock['elastic']['1']['micro_batch_size']} takes " in why


def test_rows_of_a_given_micro_batch_have_their_memory(compiled):
    status, lock, said = compiled("{min: 1, max: 4}", "fsdp2", batch="512, batch_size: 8")
    assert status == 0, said
    rows = list(lock["elastic"].values())
    assert [row["gradient_accumulation_steps"] for row in rows] == [16, 8, 4]
    assert {row["micro_batch_size"] for row in rows} == {8}
    peaks = [row["peak_allocated_bytes"] for row in rows]
    assert sorted(peaks, reverse=True) == peaks, "of more processes each has smaller shards"
    assert lock["memory"]["peak_allocated_bytes"] == peaks[-1] > 0
    assert lock["fsdp2"]["wrap"]


@pytest.mark.parametrize("more", ["activation_checkpointing: true", "allocator: expandable_segments"])
def test_rows_of_a_given_micro_batch_have_the_memory_of_fixed_plans(more, compiled):
    """`nodes: N` leaves a strategy of its own to ratc, so that its lock has a memory, too. With 64 features both
    allocators reserve different bytes.
    """
    given = f"512, batch_size: 8, {more}, deepspeed: false, use_accelerate: false"
    status, lock, said = compiled("{min: 1, max: 4}", "auto", features=64, batch=given)
    assert status == 0, said
    rows = lock["elastic"]
    assert rows.keys() == {"1", "2", "4"}
    for nodes, row in rows.items():
        fixed = compiled(nodes, "auto", features=64, batch=given)[1]
        assert fixed["parallel"]["strategy"] == lock["parallel"]["strategy"]
        assert row == split(fixed)


@pytest.mark.parametrize(
    ("memory", "features", "strategy"),
    # With 3,000 MiB ZeRO's 16-bit weights leave room for the whole share; the other two accumulate.
    [(80_000, 16, "ddp"), (3000, 256, "deepspeed")],
)
def test_auto_takes_zero_for_a_range_if_that_saves_accumulation(memory, features, strategy, compiled):
    """Its checkpoints have to be converted for another number of processes, so its fewer bytes alone do not decide."""
    status, lock, said = compiled("{min: 1, max: 4}", "auto", memory, features)
    assert status == 0, said
    assert lock["parallel"]["strategy"] == strategy
    splits = {
        nodes: (row["micro_batch_size"], row["gradient_accumulation_steps"]) for nodes, row in lock["elastic"].items()
    }
    assert splits == {"1": (128, 1), "2": (64, 1), "4": (32, 1)}
    (why,) = re.findall(r"strategy: \w+  # on 1 node, the fewest: (.*)", Path("out/lock.yaml").read_text())
    assert [part.endswith("checkpoints converted for other nodes") for part in why.split("; ")] == [False, False, True]
