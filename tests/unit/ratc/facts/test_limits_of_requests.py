"""A request that the cluster would refuse is an error at compile, at its line and with a suggestion."""

import re

import pytest

from ratc.diagnostics import Severity, has_errors
from tests.helpers.clusters import WALL, example, line, resolve

#: Scheduler, lines of `resources`; code, line pointed at, words of the message, of a note and of a help.
REFUSED = [
    (
        "slurm",
        ["partition: gpuu", "num_gpus: 1"],
        "R321",
        "partition: gpuu",
        "no partition `gpuu`",
        "`gpu`, `long`",
        "`debug`",
    ),
    (
        "slurm",
        ["partition: gpuu", "num_gpus: 1"],
        "R321",
        "partition: gpuu",
        "gpuu",
        "example-slurm.yaml:",
        "did you mean `gpu`",
    ),
    (
        "slurm",
        ["gpu: h100", "nodes: 17", "gpus_per_node: 8"],
        "R322",
        "nodes: 17",
        "17 nodes are asked for, but partition `gpu` has 16 of type `h100`",
        "`h100: 16`",
        "at most 16",
    ),
    (
        "slurm",
        ["gpu: a100-80", "nodes: 20", "gpus_per_node: 4"],
        "R322",
        "nodes: 20",
        "20 nodes are asked for, but a job in partition `gpu` may have 16",
        "`max_nodes` is 16",
        "`scavenge` would do",
    ),
    (
        "slurm",
        ["gpu: h100", "gpus_per_node: 9"],
        "R322",
        "gpus_per_node: 9",
        "nodes of type `h100` have 8",
        "`gpus_per_node` is 8",
        "at most 8 per node",
    ),
    (
        "slurm",
        ["gpu: h100", "num_gpus: 16"],
        "R322",
        "num_gpus: 16",
        "16 GPUs per node are asked for",
        "no other partition",
        "16 GPUs are 2 nodes",
    ),
    (
        "slurm",
        ["gpu: h100", "num_gpus: 8", "cpus: 97"],
        "R322",
        "cpus: 97",
        "97 cores per node are asked for, but nodes of type `h100` have 96",
        "`cpus` is 96",
        "at most 96",
    ),
    (
        "slurm",
        ["gpu: h100", "num_gpus: 1", "cpus: 17"],
        "R322",
        "cpus: 17",
        "17 cores for 1 GPU are asked for, but partition `gpu` allows 16 for each",
        "`max_cpus_per_gpu` is 16",
        "`scavenge` would do",
    ),
    (
        "slurm",
        ["gpu: h100", "num_gpus: 1", "memory: 1001GB"],
        "R322",
        "memory: 1001GB",
        "1001 GB of memory per node are asked for, but nodes of type `h100` have 1000 GB",
        "1000 GB of memory",
        "at most 1000 GB",
    ),
    (
        "slurm",
        ["gpu: a100-80", "num_gpus: 4", 'walltime: "3-00:00:00"'],
        "R322",
        'walltime: "3-00:00:00"',
        "a walltime of 3 days is asked for, but partition `gpu` allows 2 days",
        "`max_walltime` is 2-00:00:00",
        "ask for at most 2-00:00:00",
    ),
    (
        "slurm",
        ["gpu: a100-80", "num_gpus: 4", "account: p", 'walltime: "3-00:00:00"'],
        "R322",
        'walltime: "3-00:00:00"',
        "3 days",
        "max_walltime",
        "`long` would do: set `partition`",
    ),
    (
        "slurm",
        ["partition: debug", "num_gpus: 3", 'walltime: "00:30:00"'],
        "R322",
        "num_gpus: 3",
        "3 GPUs are asked for, but a job in partition `debug` may have 2",
        "`max_gpus_per_job` is 2",
        "at most 2",
    ),
    (
        "slurm",
        ["partition: debug", "nodes: 2", "num_gpus: 2", 'walltime: "00:30:00"'],
        "R322",
        "nodes: 2",
        "may have 1",
        "`max_nodes` is 1",
        "at most 1",
    ),
    (
        "slurm",
        ["partition: long", "gpu: h100", "num_gpus: 8", "account: p"],
        "R323",
        "gpu: h100",
        "partition `long` has no NVIDIA H100",
        "has `a100-80`",
        "`gpu` or `scavenge` would do",
    ),
    (
        "slurm",
        ["partition: cpu", "num_gpus: 1"],
        "R323",
        "num_gpus: 1",
        "nodes of type `cpu` have none",
        "`gpus_per_node` is 0",
        "`debug`",
    ),
    (
        "slurm",
        ["num_gpus: 4", "partition: gpu"],
        "R324",
        "partition: gpu",
        "nodes of 2 types, and the spec names none",
        "`h100` (example-slurm.yaml:",
        "`h100` or `a100`",
    ),
    (
        "slurm",
        ["node_type: b200", "num_gpus: 4"],
        "R324",
        "node_type: b200",
        "no node type `b200`",
        "`h100`, `a100`, `v100`, `cpu`",
        None,
    ),
    (
        "slurm",
        ["node_type: v100", "num_gpus: 4"],
        "R324",
        "node_type: v100",
        "partition `gpu` has no nodes of type `v100`",
        "`h100`, `a100`",
        "`scavenge` would do",
    ),
    ("slurm", ["gpu: h900", "num_gpus: 4"], "R301", "gpu: h900", "no card `h900`", None, "h100"),
    (
        "slurm",
        ["partition: long", "num_gpus: 4"],
        "R328",
        "partition: long",
        "charges every job to an account",
        "`account_required`",
        "`--account`",
    ),
    (
        "lsf",
        ["queue: gpu", "num_gpus: 4"],
        "R321",
        "queue: gpu",
        "no queue `gpu`",
        "`gpu_h100`, `gpu_v100`",
        "`gpu_v100` or",
    ),
    (
        "lsf",
        ["num_gpus: 36", "nodes: 9"],
        "R322",
        "num_gpus: 36",
        "may have 32",
        "`max_gpus_per_job` is 32",
        "at most 32",
    ),
    (
        "lsf",
        ["num_gpus: 4", 'walltime: "30:00"'],
        "R322",
        'walltime: "30:00"',
        "a walltime of 1 day 6 h is asked for, but queue `gpu_v100` allows 1 day",
        "`max_walltime` is 24:00",
        "at most 24:00",
    ),
    ("lsf", ["num_gpus: 4", "memory: 1TB"], "R322", "memory: 1TB", "1024 GB", "512 GB of memory", "at most 512 GB"),
    (
        "lsf",
        ["queue: gpu_h100", "num_gpus: 8"],
        "R328",
        "queue: gpu_h100",
        "queue `gpu_h100`",
        "`account_required`",
        "`--account`",
    ),
]


@pytest.mark.parametrize(("scheduler", "lines", "code", "at", "message", "note", "help_text"), REFUSED)
def test_request_that_the_cluster_would_refuse_is_an_error_at_its_line(
    scheduler, lines, code, at, message, note, help_text
):
    lines = lines if any("walltime" in text for text in lines) else [*lines, WALL]
    values, found = resolve(lines, example(scheduler), scheduler)
    assert values is None
    matching = [item for item in found if item.code == code and message in item.message]
    assert matching, found
    item = matching[0]
    assert item.severity is Severity.ERROR
    assert item.span.source.name == "spec.yaml"
    assert line(item.span) == at
    if note:
        assert any(note in text for text in item.notes), item.notes
        assert code == "R301" or any(f"example-{scheduler}.yaml:" in text for text in item.notes)
    if help_text:
        assert any(help_text in text for text in item.helps), item.helps


def test_every_partition_that_a_help_suggests_accepts_the_request():
    named = 0
    for scheduler, lines, *_ in REFUSED:
        lines = lines if any("walltime" in text for text in lines) else [*lines, WALL]
        read = example(scheduler)
        _, found = resolve(lines, read, scheduler)
        for text in [text for item in found for text in item.helps if " would do: set" in text]:
            for other in text.partition(" would do")[0].split(" or "):
                name, node_type = re.fullmatch(r"`([^`]+)`(?: with `node_type: ([^`]+)`)?", other).groups()
                options = [f"resources.{read.word}={name}"]
                options += [f"resources.node_type={node_type}"] if node_type else []
                values, more = resolve(lines, read, scheduler, *options)
                assert values is not None, (other, more)
                assert not has_errors(more)
                named += 1
    assert named >= 15
