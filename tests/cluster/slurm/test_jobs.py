"""Emitted jobs run unchanged on a real Slurm, over gloo on the CPU: stopped, preempted, killed and continued."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm.cluster import ENDED, Slurm
from tests.helpers import jobs
from tests.helpers.jobs import (
    as_soon_as,
    assert_whole,
    for_jobs,
    losses,
    rank_processes,
    results,
    spec,
    write_project,
)
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow

CLUSTER = str(Path(__file__).with_name("cluster.yaml"))
#: Global batch 8 on any number of nodes.
ONE = {"training__batch_size": 4}
TWO = {"training__batch_size": 4, "resources__nodes": 2}
#: One process without a launcher.
DIRECT = {**ONE, "launcher": "torchrun", "training__use_accelerate": False}
FOUR = {"training__batch_size": 2, "resources__nodes": 4}


def start(slurm: Slurm, folder: Path, *options: str, slow: float | None = None, point: str = "", **changes: Any) -> str:
    """Compile a project for the test cluster and submit what came out; returns the job's number."""
    write_project(folder, spec(resources__cluster=CLUSTER, **changes), slow, point)
    jobs.compiled(folder, "slurm")
    return slurm.submit("job/job.sbatch", *options, folder=folder, **for_jobs())


def log(folder: Path) -> str:
    """The job's own log."""
    return next(folder.glob("demo-*.out")).read_text()


def when_an_epoch_is_done(slurm: Slurm, jobs: dict[Path, str], actions: dict[Path, Callable[[], object]]) -> None:
    """Do something to each job as soon as it has done an epoch; one that ends before fails the test."""

    def an_epoch_is_done(folder: Path) -> bool:
        assert slurm.state(jobs[folder]) not in ENDED, log(folder)
        return any("train loss" in path.read_text() for path in folder.glob("demo-*.out"))

    as_soon_as(an_epoch_is_done, actions)


def assert_finished(folder: Path) -> None:
    output = folder / "outputs/demo"
    assert results(folder)["status"] == "finished"
    assert (output / "DONE").exists()
    assert not (output / "STOP").exists()
    assert not (output / "STOPPED").exists()


@pytest.fixture(scope="module")
def all_jobs(_daemons: None) -> Iterator[Slurm]:
    """The jobs that several tests look at."""
    slurm = Slurm()
    yield slurm
    slurm.cancel_all()


@pytest.fixture(scope="module")
def out_of_time(all_jobs: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A job that cannot finish in its two minutes, submitted before all others as it takes longest."""
    folder = tmp_path_factory.mktemp("slurm") / "limit"
    return start(all_jobs, folder, slow=2.0, resources__walltime="00:02", **TWO), folder


@pytest.fixture(scope="module")
def undisturbed(all_jobs: Slurm, out_of_time: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one process, as a job of one node."""
    folder = tmp_path_factory.mktemp("slurm") / "one"
    facts = all_jobs.wait_for_end(start(all_jobs, folder, **ONE))
    assert facts["JobState"] == "COMPLETED", log(folder)
    assert_finished(folder)
    return folder


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    """The run finished with the losses of the undisturbed one process, but for rounding."""
    assert_finished(folder)
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=1e-4)
    assert results(folder)["test"]["dice"] == pytest.approx(results(undisturbed)["test"]["dice"], rel=1e-3)


def test_several_nodes_train_like_one_process(slurm: Slurm, undisturbed: Path, tmp_path: Path) -> None:
    two, four = tmp_path / "two nodes, größer", tmp_path / "four"
    name = 'it\'s "demo" #1, größer'
    submitted = [
        start(slurm, two, resources__job_name=name, launcher="accelerate", **TWO),
        start(slurm, four, launcher="torchrun", training__use_accelerate=False, **FOUR),
    ]
    for job, folder, nodes in zip(submitted, (two, four), (2, 4), strict=True):
        assert slurm.wait_for_end(job)["JobState"] == "COMPLETED", log(folder)
        assert_same_run(folder, undisturbed)
        assert len(list((folder / "outputs/demo/logs").glob(f"{job}.0-node*.log"))) == nodes
    # What is finished is not run again, however often it is submitted.
    again = slurm.submit(two / "job/job.sbatch", folder=tmp_path, **for_jobs())
    assert slurm.wait_for_end(again)["JobState"] == "COMPLETED"
    assert "finished before" in log(tmp_path)


BARE = """#!/bin/sh
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --mem=2G --time=10 --output=demo-%j.out
export RAT_OUTPUT_DIR="$PWD/outputs/demo"
srun "$RATC_PYTHON" -m ratc_runtime.train --lock job/lock.yaml --data-dir data --output-dir outputs/demo
"""


def test_a_bare_srun_can_replace_the_launcher(slurm: Slurm, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    changes = {**TWO, "launcher": "torchrun", "training__use_accelerate": False}
    write_project(folder, spec(resources__cluster=CLUSTER, **changes))
    jobs.compiled(folder, "slurm")
    (folder / "bare.sbatch").write_text(BARE)
    job = slurm.submit("bare.sbatch", folder=folder, **for_jobs())
    assert slurm.wait_for_end(job)["JobState"] == "COMPLETED", log(folder)
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=1e-4)
    told = results(folder)["job"]
    assert len(set(told.pop("hosts"))) == 2
    assert told == {"scheduler": "slurm", "id": job, "restarts": 0}


def test_stopped_and_preempted_runs_continue_to_the_same_result(
    slurm: Slurm, undisturbed: Path, out_of_time: tuple[str, Path], tmp_path: Path
) -> None:
    """By USR2 before the time limit, by a preemption that tells the batch shell, by one that tells only the ranks."""
    preempted, ranks = tmp_path / "preempted", tmp_path / "ranks"
    submitted = {
        preempted: start(slurm, preempted, "--nodelist=ratc-n[3-4]", slow=0.6, resources__partition="scavenge", **TWO),
        ranks: start(slurm, ranks, slow=0.4, **ONE),
    }
    intruder = tmp_path / "intruder.sh"
    intruder.write_text("#!/bin/sh\nsleep 2\n")
    here = ("--nodelist=ratc-n3", "--exclusive", "--output=/dev/null")
    when_an_epoch_is_done(
        slurm,
        submitted,
        {
            preempted: lambda: slurm.submit(intruder, *here, folder=tmp_path),
            # Without --batch the steps get it and the batch shell does not: Slurm's preemption at sites that
            # do not set preempt_send_user_signal.
            ranks: lambda: slurm.signal(submitted[ranks], "TERM"),
        },
    )
    limit = out_of_time[1]
    submitted[limit] = out_of_time[0]
    for folder, job in submitted.items():
        facts = slurm.wait_for_end(job)
        assert facts["JobState"] == "COMPLETED", log(folder)
        assert int(facts["Restarts"]) >= 1  # on a slow machine two minutes may be too little once more
        said = log(folder)
        assert "requeued, restart 1 of at most 20" in said
        assert "continuing after epoch" in said
        assert said.count("ratc: finished") == 1
        assert_same_run(folder, undisturbed)
    assert "got USR2" in log(limit)
    assert "got USR2" in log(preempted)
    assert "got USR2" not in log(ranks)


def test_a_killed_or_cancelled_job_ends_and_keeps_its_checkpoint(slurm: Slurm, tmp_path: Path) -> None:
    killed, down, cancelled = (tmp_path / name for name in ("killed", "down", "cancelled"))
    never = {"checkpoint__requeue": "never", **TWO}
    submitted = {
        killed: start(slurm, killed, "--nodelist=ratc-n[1-2]", slow=0.6, **never),
        down: start(slurm, down, "--nodelist=ratc-n[3-4]", slow=0.6, **never),
        cancelled: start(slurm, cancelled, "--nodelist=ratc-n1", slow=0.4, **DIRECT),
    }
    when_an_epoch_is_done(
        slurm,
        submitted,
        {
            killed: lambda: os.kill(rank_processes(SLURM_JOB_ID=submitted[killed])[1], signal.SIGKILL),
            down: lambda: slurm.take_down("ratc-n4"),
            cancelled: lambda: slurm.cancel(submitted[cancelled]),
        },
    )
    ends = {killed: "FAILED", down: "NODE_FAIL", cancelled: "CANCELLED"}
    for folder, job in submitted.items():
        facts = slurm.wait_for_end(job)
        assert facts["JobState"] == ends[folder], log(folder)
        assert facts["Restarts"] == "0"
        assert facts["ExitCode"] != "0:0"
        assert not (folder / "outputs/demo/DONE").exists()
        assert_whole(folder / "outputs/demo/checkpoints/last.pt", epochs=1)
        wait_until(lambda job=job: not rank_processes(SLURM_JOB_ID=job), "no rank is left")


def test_an_array_runs_two_tasks_at_once_and_each_is_requeued_alone(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "array"
    points = {name: {"seed": seed} for seed, name in enumerate("abcde")}
    sweep = {"points": points, "max_parallel": 2}
    job = start(slurm, folder, slow=0.5, point="a", sweep=sweep, training__epochs=1, **DIRECT)
    tasks = [f"{job}_{number}" for number in range(1, 6)]
    at_once = set()

    def trains() -> bool:
        at_once.add(slurm.running_tasks(job))
        return "global batch" in "".join(path.read_text() for path in folder.glob(f"demo-{job}_1.out"))

    wait_until(trains, "the first point trains")
    slurm.signal(tasks[0], "USR2", batch=True)

    def over() -> bool:
        at_once.add(slurm.running_tasks(job))
        return all(slurm.state(task) in ENDED for task in tasks)

    wait_until(over, "all points are done")
    assert [slurm.state(task) for task in tasks] == ["COMPLETED"] * 5
    assert [slurm.facts(task)["Restarts"] for task in tasks] == ["1", "0", "0", "0", "0"]
    assert max(at_once) == 2
    assert len({results(folder, name)["epochs"][0]["train_loss"] for name in points}) == 5
    for name in points:
        assert results(folder, name)["status"] == "finished"
        assert (folder / "outputs/demo" / name / "DONE").exists()
