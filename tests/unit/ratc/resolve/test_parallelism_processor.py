"""The processor of the nodes: from the cluster's facts, or from a card that is sold with one kind only."""

from __future__ import annotations

import pytest

from ratc import compiler
from ratc.compiler import File
from tests.helpers.clusters import cluster, settings

FACTS = """name: ours
scheduler: slurm
node_types: {{node: {{gpu: {gpu}, gpus_per_node: 4, cpus: 144, memory: 900GB{more}}}}}
partitions: {{gpu: {{nodes: {{node: 2}}, max_walltime: "2-00:00:00"}}}}
"""


@pytest.mark.parametrize(
    ("gpu", "more", "gpus", "expected"),
    [
        ("gb200", "", 4, "aarch64"),
        ("gh200", "", 4, "aarch64"),
        ("gh200", "", 0, "aarch64"),
        ("h100", "", 4, None),
        ("h100", ", cpu_architecture: aarch64", 4, "aarch64"),
        ("h100", ", cpu_architecture: x86_64", 0, "x86_64"),
    ],
)
def test_processor_is_that_of_the_facts_or_of_the_card(gpu: str, more: str, gpus: int, expected: str | None) -> None:
    spec = settings([f"gpus_per_node: {gpus}", 'walltime: "1:00:00"'])
    plan, found = compiler.plan(spec, None, None, None, cluster(FACTS.format(gpu=gpu, more=more)), "slurm")
    assert plan is not None, found
    value = plan.values.get("hardware.cpu_architecture")
    assert (None if value is None else value.value) == expected


def test_a_card_with_the_processor_of_another_is_refused() -> None:
    text = FACTS.format(gpu="gb300", more=", cpu_architecture: x86_64")
    read, found = compiler.read_cluster(File("ours.yaml", text.encode()))
    assert read is None
    assert [one.code for one in found] == ["R325"]
    assert "are x86_64, and those of NVIDIA GB300 (one GPU) aarch64" in found[0].message
