"""The section `health` of a plan: its condition, its expected rates, and how many nodes it may exclude."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ratc import compiler
from ratc.plan import Plan
from tests.helpers.clusters import cluster, settings

CLUSTER: dict[str, Any] = {
    "name": "ours",
    "scheduler": "slurm",
    "node_types": {"h100": {"gpu": "h100", "gpus_per_node": 8, "cpus": 96, "memory": "1000GB", "network_gb_s": 400}},
    "partitions": {"gpu": {"nodes": {"h100": 4}, "max_walltime": "2-00:00:00"}},
}
NODES = ("nodes: 2", "num_gpus: 16")


def resolved(*lines: str, **facts: Any) -> tuple[Plan | None, list[str]]:
    """The plan of a spec with these lines of `resources`, and the codes of what was found."""
    read = cluster(yaml.safe_dump({**CLUSTER, **facts}))
    plan, found = compiler.plan(settings([*lines, 'walltime: "1:00:00"']), None, None, None, read, "slurm")
    return plan, [item.code for item in found]


def health(plan: Plan | None) -> dict[str, Any]:
    assert plan is not None
    return {path.partition(".")[2]: value.value for path, value in plan.values.items() if path.startswith("health.")}


@pytest.mark.parametrize(
    ("asked", "fact", "there"),
    [("auto", False, False), ("auto", True, True), ("always", False, True), ("never", True, False)],
)
def test_health_check_is_enabled_by_the_cluster_or_the_spec(asked: str, fact: bool, there: bool) -> None:
    plan, _ = resolved(*NODES, f"health_check: {asked}", health_check=fact)
    assert bool(health(plan)) == there


def test_health_check_expects_data_sheet_rates_and_facts() -> None:
    plan, found = resolved(*NODES, health_check=True)
    assert health(plan) == {
        "matrix_tflops": 989.4,
        "memory_gb_s": 3350.0,
        "network_gb_s": 400.0,
        "max_excluded_nodes": 2,
    }
    assert found == []
    # One node sends nothing; a part of a card (MIG) is a device of its own, without a data sheet.
    plan, _ = resolved("num_gpus: 1", health_check=True)
    assert health(plan)["network_gb_s"] is None
    part = {"gpu": "h100 1g.10gb", "gpu_memory_mib": 9_000, "compute_capability": "9.0"}
    a_part = {"h100": {**CLUSTER["node_types"]["h100"], **part}}
    plan, _ = resolved("num_gpus: 1", health_check=True, node_types=a_part)
    assert (health(plan)["matrix_tflops"], health(plan)["memory_gb_s"]) == (None, None)


def test_excluded_nodes_leave_enough_nodes_for_the_job() -> None:
    plan, found = resolved("nodes: 3", "num_gpus: 24", health_check=True)
    assert (health(plan)["max_excluded_nodes"], found) == (1, [])
    plan, found = resolved("nodes: 3", "num_gpus: 24", "max_excluded_nodes: 2", health_check=True)
    assert (health(plan)["max_excluded_nodes"], found) == (1, ["R381"])
    plan, found = resolved("nodes: 4", "num_gpus: 32", "max_excluded_nodes: 0", health_check=True)
    assert (health(plan)["max_excluded_nodes"], found) == (0, [])


@pytest.mark.parametrize(
    ("version", "codes", "asked"),
    [("25.11", [], True), ("26.05.1", [], True), (None, [], True), ("25.05", ["R384"], None)],
)
def test_expedited_requeue_needs_a_slurm_that_supports_it(
    version: str | None, codes: list[str], asked: bool | None
) -> None:
    plan, found = resolved(*NODES, expedited_requeue=True, **({"version": version} if version else {}))
    assert found == codes
    assert (plan is not None and plan.values["job.expedited_requeue"].value) == bool(asked)


def test_job_without_requeue_gets_no_expedited_requeue() -> None:
    partition = {"gpu": {**CLUSTER["partitions"]["gpu"], "requeue": False}}
    plan, found = resolved(*NODES, expedited_requeue=True, partitions=partition)
    assert plan is not None
    assert "job.expedited_requeue" not in plan.values
    assert found == []
