"""Limits of a site: a request over them fails at compile, and the default request stays within them."""

import pytest
import yaml

from ratc.cli import main

CLUSTER = """\
name: c
scheduler: slurm
node_types: {{n: {{gpus_per_node: 8, gpu: h100, gpu_type: h100, cpus: 64, memory: 512GB}}}}
partitions:
  p: {{nodes: {{n: 8}}, max_walltime: "24:00:00", {limits}}}
"""


@pytest.fixture
def compiles(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(limits: str, asked: str, more: str = "") -> tuple[int, str, dict]:
        (tmp_path / "c.yaml").write_text(CLUSTER.format(limits=limits) + more)
        (tmp_path / "spec.yaml").write_text(
            "experiment_name: demo\ndata: {data_dir: data}\ntraining: {batch_size: 2, target_batch_size: 192}\n"
            f'resources: {{cluster: ./c.yaml, walltime: "1:00:00", {asked}}}\n'
        )
        status = main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"])
        lock = yaml.safe_load((tmp_path / "out" / "lock.yaml").read_text()) if status == 0 else {}
        return status, capsys.readouterr().err, lock.get("job", {})

    return run


@pytest.mark.parametrize(
    ("asked", "cpus", "mebibytes"),
    [("num_gpus: 4", 32, 32 * 4000), ("num_gpus: 8", 64, 64 * 4000), ("num_gpus: 2, cpus: 4", 4, 4 * 4000)],
)
def test_default_request_stays_within_the_memory_limit_per_cpu(compiles, asked, cpus, mebibytes):
    status, said, job = compiles("max_memory_per_cpu: 4000MB", asked)
    assert status == 0, said
    assert (job["cpus_per_node"], job["memory_bytes_per_node"] >> 20) == (cpus, mebibytes)


def test_memory_limit_above_the_default_share_changes_nothing(compiles):
    assert compiles("max_memory_per_cpu: 64GB", "num_gpus: 4")[2]["memory_bytes_per_node"] == 256 << 30


@pytest.mark.parametrize(
    ("limits", "asked", "code", "words"),
    [
        ("max_memory_per_cpu: 4GB", "num_gpus: 4, cpus: 8, memory: 64GB", "error[R322]", "at most 32 GB"),
        ("max_memory_per_cpu: 4GB", "num_gpus: 4, memory: 200GB", "error[R322]", "at most 131072 MB"),
        ("max_memory_per_cpu: 4GB, max_cpus_per_node: 48", "num_gpus: 8, memory: 200GB", "error[R322]", "196608 MB"),
        ("min_nodes: 2", "num_gpus: 4", "error[R322]", "at least 2"),
        ("max_nodes: 2", "nodes: {min: 1, max: 3}, gpus_per_node: 4", "error[R322]", "at most 2\n"),
        (
            "max_nodes: 2",
            "nodes: {min: 3, max: 4}, gpus_per_node: 4",
            "error[R322]",
            "at most 2 as `max`, and as `min`",
        ),
        ("accounts: [x, y]", "num_gpus: 4, account: z", "error[R322]", "`x`, `y`"),
        ("qos: [long]", "num_gpus: 4, qos: short", "error[R322]", "`long`"),
        ("accounts: [x, y]", "num_gpus: 4", "warning[R328]", "default account"),
    ],
)
def test_request_against_a_site_limit_is_reported_at_compile(compiles, limits, asked, code, words):
    status, said, _ = compiles(limits, asked)
    assert code in said
    assert words in said
    assert status == code.startswith("error")


@pytest.mark.parametrize(
    "asked", ["", "questions: ['partitions.q.state: the partition is DOWN; will it be UP again?']"]
)
def test_a_partition_that_may_be_down_is_not_proposed(compiles, asked):
    other = f"  q: {{nodes: {{n: 8}}}}\n{asked}\n"
    said = compiles("max_nodes: 1", "nodes: 2, num_gpus: 16, partition: p", other)[1]
    assert "error[R322]" in said
    assert ("`q` would do" in said) == (not asked)


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ("accounts: [x]", "num_gpus: 4, account: X"),
        ("qos: [long]", "num_gpus: 4"),
        ("min_nodes: 2", "nodes: 2, num_gpus: 16"),
    ],
)
def test_request_within_the_site_limits_compiles(compiles, limits, asked):
    status, said, _ = compiles(limits, asked)
    assert (status, said.count("error")) == (0, 0), said
