"""Segments of a job: nodes that lie in one block of Slurm's block topology."""

from __future__ import annotations

import pytest

from ratc import compiler
from tests.helpers.clusters import cluster, settings

RACKS = """name: ours
scheduler: slurm
node_types: {rack: {gpu: gb200, gpus_per_node: 4, cpus: 144, memory: 900GB, block_nodes: 18}}
partitions: {gpu: {nodes: {rack: 72}, max_walltime: "2-00:00:00"}}
"""


def segment(nodes: str, facts: str = RACKS, batch: int = 36 * 36 * 4) -> int | None:
    """The nodes of a segment of a job; None if it asks for none."""
    spec = settings(
        [f"nodes: {nodes}", "gpus_per_node: 4", 'walltime: "1:00:00"'],
        f"training.target_batch_size={batch}",
    )
    plan, found = compiler.plan(spec, None, None, None, cluster(facts), "slurm")
    assert plan is not None, found
    value = plan.values.get("job.segment_nodes")
    return None if value is None else value.value


@pytest.mark.parametrize(("nodes", "size"), [(2, 2), (18, 18), (36, 18), (24, 12), (1, None), (19, None)])
def test_a_segment_is_the_most_nodes_of_a_block_that_divide_the_job(nodes: int, size: int | None) -> None:
    assert segment(str(nodes), batch=nodes * 4) == size


def test_a_range_and_a_cluster_without_blocks_have_no_segments() -> None:
    assert segment("{min: 18, max: 36}") is None
    assert segment("18", RACKS.replace(", block_nodes: 18", "")) is None
