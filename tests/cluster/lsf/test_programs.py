"""A user's program as an LSF job on two hosts: it is stopped, started again, and finishes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.cluster.lsf.test_jobs import HERE, HOSTS, Lsf, lsf, said
from tests.helpers import jobs
from tests.helpers.jobs import as_soon_as, needs, results
from tests.places import ROOT

__all__ = ["lsf"]

SPEC = f"""experiment_name: demo
entrypoint: {{script: train.py, args: [--text, text.txt]}}
training: {{epochs: 12, learning_rate: 3e-3, target_batch_size: 16, batch_size: 8}}
resources: {{cluster: {HERE / "cluster.yaml"}, nodes: 2, num_gpus: 0, cpus: 1, memory: 2GB, walltime: "00:10"}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_trainer_on_two_hosts_continues_after_a_stop(lsf: Lsf, tmp_path: Path, launcher: str) -> None:
    needs("transformers")
    folder = tmp_path / "two hosts, größer"
    shutil.copytree(ROOT / "specs/text", folder, ignore=shutil.ignore_patterns("compiled", "outputs"))
    (folder / "spec.yaml").write_text(f"{SPEC}launcher: {launcher}\n")
    jobs.compiled(folder, "lsf")
    first = lsf.bsub(folder, "8", HOSTS)

    def trains(folder: Path) -> bool:
        assert first.poll() is None, said(folder)
        return "'loss'" in said(folder)

    as_soon_as(trains, {folder: lambda: lsf.signal(first, signal.SIGUSR2)})
    assert lsf.end(first) == 99, said(folder)
    assert lsf.end(lsf.bsub(folder, "8", HOSTS[::-1])) == 0, said(folder)
    assert "going on from" in said(folder)
    found = results(folder)
    assert found["steps"] == 12 * 10
    assert found["world_size"] == 2
    assert {path.name for path in (folder / "outputs/demo/logs").glob("*.log")} == {
        f"8.0.{start}-node{node}.log" for start in (0, 1) for node in (0, 1)
    }
    # What is finished is not run again.
    assert lsf.end(lsf.bsub(folder, "9", HOSTS)) == 0
    assert "finished before" in said(folder)
