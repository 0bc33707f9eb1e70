"""The rows of an elastic lock, and the row that a start takes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ratc_runtime.config import elastic
from ratc_runtime.config.lock import lock_from
from ratc_runtime.config.program_lock import ProgramLock
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.training.micro_batch import Split

from tests.helpers.lockfile import BASE, lock_content
from tests.places import CASES

NOTHING = {"prefetch_factor": None, "peak_allocated_bytes": None, "peak_reserved_bytes": None}


def row(world: int, micro: int, steps: int, **more: Any) -> dict[str, Any]:
    split = {"world_size": world, "micro_batch_size": micro, "gradient_accumulation_steps": steps}
    return {**split, **NOTHING, **more}


def content(**changes: Any) -> dict[str, Any]:
    """A lock for 2 or 4 nodes of two processes, global batch 16."""
    rows = {"2": row(4, 2, 2, prefetch_factor=3, peak_allocated_bytes=7, peak_reserved_bytes=9), "4": row(8, 2, 1)}
    given = lock_content(
        elastic=rows,
        parallel={**BASE["parallel"], "world_size": 8, "nodes": 4, "processes_per_node": 2},
        training__global_batch_size=16,
        training__micro_batch_size=2,
        training__gradient_accumulation_steps=1,
    )
    return {**given, **changes}


def test_a_start_takes_the_row_of_its_number_of_nodes() -> None:
    lock = lock_from(content())
    assert elastic.of_start(lock, {}) == lock
    for environment in ({"RATC_NODES": "2"}, {"WORLD_SIZE": "4"}, {"WORLD_SIZE": "4", "RATC_NODES": "4"}):
        taken = elastic.of_start(lock, environment)
        assert (taken.parallel.nodes, taken.parallel.world_size) == (2, 4)
        assert (taken.training.micro_batch_size, taken.training.gradient_accumulation_steps) == (2, 2)
        assert (taken.data.prefetch_factor, taken.memory.peak_allocated_bytes) == (3, 7)
        assert taken.fingerprint() == lock.fingerprint()
        # A checkpoint keeps the lock of its start, and that is read again.
        assert lock_from(taken.model_dump(exclude_none=False)) == taken


def test_full_shards_follow_the_process_count_and_hybrid_groups_do_not() -> None:
    for shard, size, expected in (("full", 8, 4), ("hybrid", 2, 2)):
        fsdp2 = {"shard": shard, "shard_size": size, "wrap": None, "offload": False, "weights": "fp32"}
        engine = {**BASE["engine"], "use_accelerate": True}
        lock = lock_from(content(fsdp2=fsdp2, engine=engine))
        taken = elastic.of_start(lock, {"RATC_NODES": "2"})
        assert taken.fsdp2 is not None
        assert taken.fsdp2.shard_size == expected
        assert lock_from(taken.model_dump()) == taken


@pytest.mark.parametrize("given", ["3", "0", "-1", "8", "two", "", "9" * 40, "\N{FULLWIDTH DIGIT TWO}"])
def test_numbers_of_nodes_without_a_row_are_refused(given: str) -> None:
    lock = lock_from(content())
    for name in ("RATC_NODES", "WORLD_SIZE"):
        if (name, given) == ("WORLD_SIZE", "8"):
            continue
        with pytest.raises(RuntimeFinding, match="R613"):
            elastic.of_start(lock, {name: given})


@pytest.mark.parametrize(
    ("nodes", "changed", "at"),
    [
        ("2", {"world_size": 5}, "elastic.2.world_size"),
        ("2", {"micro_batch_size": 3}, "elastic.2.micro_batch_size"),
        ("4", {"micro_batch_size": 1, "gradient_accumulation_steps": 2}, "elastic"),
    ],
)
def test_rows_that_contradict_the_lock_are_refused(nodes: str, changed: dict[str, Any], at: str) -> None:
    edited = copy.deepcopy(content())
    edited["elastic"][nodes] |= changed
    with pytest.raises(RuntimeFinding, match="R505") as caught:
        lock_from(edited)
    assert f"{at} " in f"{caught.value.message} {caught.value.note} "


@pytest.mark.parametrize("name", ["two", "02", "-2", "2.0", "", "0"])
def test_a_row_is_named_by_its_number_of_nodes(name: str) -> None:
    edited = content()
    edited["elastic"][name] = edited["elastic"].pop("2")
    with pytest.raises(RuntimeFinding, match="R505"):
        lock_from(edited)


def test_a_group_of_shards_divides_every_row() -> None:
    fsdp2 = {"shard": "hybrid", "shard_size": 8, "wrap": None, "offload": False, "weights": "fp32"}
    given = content(fsdp2=fsdp2, engine={**BASE["engine"], "use_accelerate": True})
    with pytest.raises(RuntimeFinding, match="R505"):
        lock_from(given)


def test_a_micro_batch_reduction_applies_to_its_number_of_nodes_only(tmp_path: Path) -> None:
    lock = lock_from(content())
    two = Split(elastic.of_start(lock, {"RATC_NODES": "2"}), "sha", tmp_path, fresh=False)
    two.reduce("at first", 0, "out of memory", everywhere=False)
    two.write()
    assert Split(two.reviewed, "sha", tmp_path, fresh=False).lock.training.micro_batch_size == 1
    assert Split(lock, "sha", tmp_path, fresh=False).lock == lock


def test_a_program_gets_the_row_of_its_nodes_and_keeps_its_checkpoints() -> None:
    given = yaml.safe_load((CASES / "entrypoint-script/expected/lock.yaml").read_text())
    given["parallel"] |= {"nodes": 2, "processes_per_node": 2, "world_size": 4}
    given["training"] |= {"global_batch_size": 16, "micro_batch_size": 4, "gradient_accumulation_steps": 1}
    split = {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "world_size": 2}
    given["elastic"] = {"1": split, "2": {**split, "gradient_accumulation_steps": 1, "world_size": 4}}
    lock = ProgramLock.model_validate(given)
    one = elastic.of_start(lock, {"RATC_NODES": "1"})
    assert (one.handed()["nodes"], one.handed()["world_size"], one.handed()["gradient_accumulation_steps"]) == (1, 2, 2)
    assert one.identity() == lock.identity()
