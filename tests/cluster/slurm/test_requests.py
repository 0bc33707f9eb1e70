"""The controller accepts golden scripts, and ratc refuses the requests that the controller refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ratc.cli import main
from tests.cluster.slurm.cluster import Slurm
from tests.helpers.jobs import spec
from tests.places import CASES

#: Options of later versions, which Slurm 22.05 does not know.
LATER = ("--requeue=expedite", "--segment=")
GOLDEN = sorted(
    one for one in CASES.glob("*/expected/**/job.sbatch") if not any(option in one.read_text() for option in LATER)
)
CLUSTER = str(Path(__file__).with_name("cluster.yaml"))
#: What is asked of the test cluster, and is no mistake.
RIGHT = {"resources__num_gpus": 8, "resources__nodes": 2, "resources__gpu": "h100-80", "training__batch_size": 1}
RIGHT_OPTIONS = (
    "--nodes=2",
    "--ntasks-per-node=1",
    "--gpus-per-node=h100:4",
    "--cpus-per-task=1",
    "--mem=2G",
    "--time=10",
)
#: A name, what the spec says instead, the same for sbatch, and the code of ratc's refusal.
WRONG: tuple[tuple[str, dict[str, Any], tuple[str, ...], str], ...] = (
    ("no time", {"walltime": "00:00:00"}, ("--time=0",), "R406"),
    ("five nodes", {"nodes": 5, "num_gpus": 20}, ("--nodes=5",), "R322"),
    ("five GPUs a node", {"num_gpus": 10}, ("--gpus-per-node=h100:5",), "R322"),
    ("GPUs for five nodes", {"nodes": None, "num_gpus": 20}, ("--nodes=5",), "R322"),
    ("a type that is not there", {"gpu": "a100-80"}, ("--gpus-per-node=a100:4",), "R323"),
    ("an unknown partition", {"partition": "gpuu"}, ("--partition=gpuu",), "R321"),
    ("a node type that is not there", {"node_type": "fat"}, ("--constraint=fat",), "R324"),
    ("more CPUs than a node has", {"cpus": 17}, ("--cpus-per-task=17",), "R322"),
    ("more memory than a node has", {"memory": "300GB"}, ("--mem=300G",), "R322"),
    ("two days", {"walltime": "2-00:00:00"}, ("--time=2-00:00:00",), "R322"),
    ("two nodes of the small", {"partition": "small"}, ("--partition=small",), "R322"),
    (
        "twenty minutes of the small",
        {"partition": "small", "nodes": 1, "num_gpus": 4, "walltime": "00:20:00"},
        ("--partition=small", "--nodes=1", "--time=20"),
        "R322",
    ),
    (
        "nine CPUs of the small",
        {"partition": "small", "nodes": 1, "num_gpus": 4, "cpus": 9},
        ("--partition=small", "--nodes=1", "--cpus-per-task=9"),
        "R322",
    ),
    (
        "much memory of the small",
        {"partition": "small", "nodes": 1, "num_gpus": 4, "memory": "40GB"},
        ("--partition=small", "--nodes=1", "--mem=40G"),
        "R322",
    ),
    ("five preemptible nodes", {"partition": "scavenge", "nodes": 5, "num_gpus": 20}, ("-pscavenge", "-N5"), "R322"),
    ("a time that is none", {"walltime": "tomorrow"}, ("--time=tomorrow",), "R1"),
    ("memory that is none", {"memory": "64 apples"}, ("--mem=64 apples",), "R1"),
    ("no CPUs", {"cpus": 0}, ("--cpus-per-task=0",), "R1"),
    ("fewer GPUs than none", {"num_gpus": -1}, ("--gpus-per-node=-1",), "R1"),
)


def ask_ratc(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> int:
    """Compile the right request with changes; returns the exit status."""
    content = spec(resources__cluster=CLUSTER, **RIGHT)
    content["resources"] |= changes
    content["resources"] = {key: value for key, value in content["resources"].items() if value is not None}
    (folder / "spec.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(folder)
    return main(["compile", "spec.yaml", "--target", "slurm", "-o", "job"])


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "nothing.sh"
    path.write_text("#!/bin/sh\n")
    return path


def test_golden_scripts_exist():
    assert GOLDEN


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.relative_to(CASES).parts[0])
def test_the_controller_accepts_a_golden_script(slurm: Slurm, path: Path, tmp_path: Path):
    # Their partitions are other clusters'; this one has nodes of every kind that the goldens ask for.
    done = slurm.sbatch(path, "--test-only", "--partition=large", folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_valid_request_is_accepted_by_ratc_and_the_controller(
    slurm: Slurm, script: Path, tmp_path: Path, monkeypatch
):
    assert ask_ratc(tmp_path, monkeypatch) == 0
    assert slurm.sbatch(script, "--test-only", *RIGHT_OPTIONS, folder=tmp_path).returncode == 0
    assert slurm.sbatch("job/job.sbatch", "--test-only", folder=tmp_path).returncode == 0


@pytest.mark.parametrize(("changes", "options", "code"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_an_invalid_request_is_refused_by_ratc_and_the_controller(
    slurm: Slurm, script, tmp_path, monkeypatch, capsys, changes, options, code
):
    assert ask_ratc(tmp_path, monkeypatch, **changes) == 1
    assert f"error[{code}" in capsys.readouterr().err
    done = slurm.sbatch(script, "--test-only", *RIGHT_OPTIONS, *options, folder=tmp_path)
    assert done.returncode != 0, done.stderr
