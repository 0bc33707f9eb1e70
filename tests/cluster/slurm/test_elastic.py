"""An elastic job on a real Slurm loses a node and continues on fewer, with the losses of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm.cluster import Slurm
from tests.cluster.slurm.test_jobs import assert_finished, log, start, when_an_epoch_is_done
from tests.helpers.jobs import losses, results
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow

#: Global batch 8 on 2 or 4 nodes of a process each; 3 cannot split it.
RANGE = {"training__batch_size": 2, "resources__nodes": {"min": 2, "max": 4}}
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"launcher": "torchrun", "training__use_accelerate": False},
    "fsdp2": {"parallel": {"strategy": "fsdp2"}},
    "zero2": {"training__deepspeed": True, "training__zero_stage": 2},
}


def pace(folder: Path, seconds: float) -> None:
    """Set how long a job waits for a sample. It may read the file at any moment."""
    new = folder / "outputs/demo/slow.new"
    new.write_text(str(seconds))
    new.replace(new.with_name("slow"))


def test_an_elastic_job_that_loses_a_node_continues_on_fewer(slurm: Slurm, tmp_path: Path) -> None:
    """On four nodes until one is gone, and then on the two that can split the batch."""
    one = tmp_path / "one"
    whole = start(slurm, one, training__batch_size=4)
    assert slurm.wait_for_end(whole)["JobState"] == "COMPLETED", log(one)
    submitted = {tmp_path / kind: start(slurm, tmp_path / kind, slow=2.5, **RANGE, **KINDS[kind]) for kind in KINDS}
    # Whichever has done an epoch nearly halts, so that none is at its end before the last one has done its first.
    when_an_epoch_is_done(slurm, submitted, {folder: lambda folder=folder: pace(folder, 30) for folder in submitted})
    assert {slurm.facts(job)["NumNodes"] for job in submitted.values()} == {"4"}
    with slurm.without_daemon("ratc-n4"):
        for folder, job in submitted.items():
            wait_until(lambda job=job: slurm.facts(job)["Restarts"] == "1", f"{folder.name} is requeued")
            pace(folder, 0.01)
        for folder, job in submitted.items():
            facts = slurm.wait_for_end(job)
            assert facts["JobState"] == "COMPLETED", log(folder)
            assert facts["NumNodes"] in ("2", "3")
    for folder in submitted:
        assert_finished(folder)
        found = results(folder)
        assert [start["world_size"] for start in found["starts"]["last"]] == [4, 2]
        assert found["world_size"] == 2
        assert found["starts"]["last"][1]["epoch"] >= 1
        assert "continuing after epoch" in log(folder)
        assert losses(folder) == pytest.approx(losses(one), rel=1e-4)
        assert found["test"]["dice"] == pytest.approx(results(one)["test"]["dice"], rel=1e-3)


def test_a_surplus_node_stays_idle_and_too_few_nodes_are_refused(slurm: Slurm, tmp_path: Path) -> None:
    three, few = tmp_path / "three", tmp_path / "few"
    submitted = {three: start(slurm, three, "--nodes=3", **RANGE), few: start(slurm, few, "--nodes=1", **RANGE)}
    assert slurm.wait_for_end(submitted[few])["JobState"] == "FAILED"
    assert "error[R614]: the job has 1 nodes, and the lock is for 2 or 4" in log(few)
    assert slurm.wait_for_end(submitted[three])["JobState"] == "COMPLETED", log(three)
    assert "the job has 3 nodes and uses 2: the lock is for 2 or 4" in log(three)
    assert results(three)["world_size"] == 2
    assert len(set(results(three)["job"]["hosts"])) == 2
