"""Emitted LSF jobs: every line is documented, and the batch shell runs for real; only `blaunch` is a stand-in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lsf.grammar import problems
from tests.effort import HANGS_S
from tests.helpers import jobs
from tests.helpers.jobs import (
    as_soon_as,
    assert_whole,
    losses,
    rank_processes,
    results,
    spec,
    write_project,
)
from tests.helpers.waiting import wait_until
from tests.places import CASES

HERE = Path(__file__).parent

GOLDEN = sorted(CASES.glob("*/expected/**/job.lsf"))
HOSTS = ("127.0.0.1", "127.0.0.2")


def test_golden_scripts_exist():
    assert GOLDEN


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.relative_to(CASES).parts[0])
def test_a_golden_script_follows_the_documented_grammar(path):
    assert problems(path.read_text()) == []


@dataclass
class Lsf:
    """What bsub and LSF's daemons do with a script: a copy of it runs on the first host, with LSF's variables.

    The hosts of a job are this machine's loopback addresses, so that they can meet; nothing else is as on the
    submitting machine: the tasks have no PYTHONPATH, and the files are found through what the script says.
    """

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def bsub(self, project: Path, job: str, hosts: tuple[str, ...], hostfile: bool = False) -> subprocess.Popen[bytes]:
        """`bsub < job/job.lsf` in a project's folder, dispatched at once to `hosts` with four slots each."""
        home = self.folder / job
        home.mkdir(exist_ok=True)
        copy = home / "job.shell"
        shutil.copy(project / "job/job.lsf", copy)
        python = home / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH="{jobs.ROOT / "runtime"}" exec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        variables = {
            "PATH": f"{HERE}:{os.environ['PATH']}",
            "HOME": str(home),
            "RATC_PYTHON": str(python),
            "LSB_JOBID": job,
            "LSB_JOBINDEX": "0",
            "LSB_MCPU_HOSTS": " ".join(f"{host} 4" for host in hosts),
            "LS_SUBCWD": str(project),
        }
        if hostfile:
            lines = home / "hosts"
            lines.write_text("".join(f"{host}\n" * 4 for host in hosts))
            variables["LSB_DJOB_HOSTFILE"] = str(lines)
        with (project / f"demo-{job}.out").open("ab") as out:
            process = subprocess.Popen(
                ["bash", copy], cwd=project, env=variables, stdout=out, stderr=out, start_new_session=True
            )
        self.running.append(process)
        return process

    def signal(self, process: subprocess.Popen[bytes], number: int) -> None:
        """Signal a job as LSF does: every process of it on the first host."""
        os.killpg(process.pid, number)

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the end of a job's script, end its tasks as LSF then does, and return the exit status."""
        status = process.wait(timeout=HANGS_S)
        self.running.remove(process)
        return status


@pytest.fixture
def lsf(tmp_path: Path) -> Iterator[Lsf]:
    lsf = Lsf(tmp_path)
    yield lsf
    for process in lsf.running:
        os.killpg(process.pid, signal.SIGKILL)


def project(folder: Path, slow: float | None = None, **changes: Any) -> Path:
    """A compiled project for the test cluster."""
    write_project(folder, spec(resources__cluster=str(HERE / "cluster.yaml"), **changes), slow)
    jobs.compiled(folder, "lsf")
    return folder


#: One process without a launcher, and one on each of two hosts.
ONE = {"training__batch_size": 4, "launcher": "torchrun", "training__use_accelerate": False}
TWO = {"training__batch_size": 4, "resources__nodes": 2}


def said(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("demo-*.out")))


def when_an_epoch_is_done(
    started: dict[Path, subprocess.Popen[bytes]], actions: dict[Path, Callable[[], object]]
) -> None:
    """Do something to each job as soon as it has done an epoch; one that ends before fails the test."""

    def an_epoch_is_done(folder: Path) -> bool:
        assert started[folder].poll() is None, said(folder)
        return "train loss" in said(folder)

    as_soon_as(an_epoch_is_done, actions)


@pytest.mark.slow
def test_two_hosts_train_like_one_also_after_a_stop_and_restart(lsf: Lsf, tmp_path: Path) -> None:
    one = project(tmp_path / "one", **ONE)
    two = project(tmp_path / "two hosts, größer", slow=0.3, checkpoint__max_restarts=1, **TWO)
    single = lsf.bsub(one, "7", HOSTS[:1])
    several = lsf.bsub(two, "8", HOSTS, hostfile=True)
    when_an_epoch_is_done({two: several}, {two: lambda: lsf.signal(several, signal.SIGUSR2)})
    assert lsf.end(several) == 99, said(two)
    assert lsf.end(single) == 0, said(one)
    # LSF starts it again, this time on the hosts in another order and without a file of them.
    assert lsf.end(lsf.bsub(two, "8", HOSTS[::-1])) == 0, said(two)
    assert "continuing after epoch" in said(two)
    assert results(two)["status"] == "finished"
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    output = two / "outputs/demo"
    assert {path.name for path in (output / "logs").iterdir()} == {
        f"8.0.{i}-node{k}.log" for i in (0, 1) for k in (0, 1)
    }
    assert (output / "RESTARTS").read_text() == "8.0 1\n"
    # What is finished is not run again.
    assert lsf.end(lsf.bsub(two, "9", HOSTS)) == 0
    assert "finished before" in said(two)
    # A job that was started again too often gives up.
    (output / "DONE").unlink()
    assert lsf.end(lsf.bsub(two, "8", HOSTS)) == 1
    assert "more than max_restarts: 1" in said(two)


@pytest.mark.slow
def test_a_killed_job_saves_a_checkpoint_and_a_dead_rank_ends_the_job(lsf: Lsf, tmp_path: Path) -> None:
    killed = project(tmp_path / "killed", slow=0.4, **ONE)
    dead = project(tmp_path / "dead", slow=0.6, **TWO)
    started = {killed: lsf.bsub(killed, "17", HOSTS[:1]), dead: lsf.bsub(dead, "18", HOSTS)}
    when_an_epoch_is_done(
        started,
        {
            killed: lambda: lsf.signal(started[killed], signal.SIGINT),  # bkill begins with it
            dead: lambda: os.kill(rank_processes(LSB_JOBID="18")[1], signal.SIGKILL),
        },
    )
    assert lsf.end(started[killed]) == 75, said(killed)
    assert lsf.end(started[dead]) not in (0, 75, 99), said(dead)
    for folder in started:
        assert not (folder / "outputs/demo/DONE").exists()
        assert_whole(folder / "outputs/demo/checkpoints/last.pt", epochs=1)
    for job in ("17", "18"):
        wait_until(lambda job=job: not rank_processes(LSB_JOBID=job), "no rank is left")


def test_a_job_with_too_few_hosts_or_recompiled_files_is_refused(lsf: Lsf, tmp_path: Path) -> None:
    folder = project(tmp_path / "project", **TWO)
    assert lsf.end(lsf.bsub(folder, "27", HOSTS[:1])) == 1
    assert "the job has 1 hosts, the lock 2" in said(folder)
    (folder / "job/node.sh").write_text("# another\n")
    assert lsf.end(lsf.bsub(folder, "28", HOSTS)) == 1
    assert "compiled again since" in said(folder)
