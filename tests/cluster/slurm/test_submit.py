"""`ratc submit` with a real Slurm: submission, refusals, and waiting for the end of a job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.slurm.cluster import Slurm, ask
from tests.helpers.jobs import for_jobs, results, spec, write_project
from tests.places import ROOT

pytestmark = pytest.mark.slow

CLUSTER = str(Path(__file__).with_name("cluster.yaml"))
SMALL = {"resources__cluster": CLUSTER, "training__batch_size": 8, "training__epochs": 1}


class Project:
    """A spec in a folder, and `ratc submit` there."""

    def __init__(self, folder: Path, slurm: Slurm) -> None:
        self.folder, self.slurm = folder, slurm

    def submit(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run it; the test's Slurm learns of the job."""
        done = subprocess.run(
            [sys.executable, "-m", "ratc", "submit", "spec.yaml", *options],
            cwd=self.folder,
            env={**os.environ, **for_jobs(), "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", **variables},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if done.stdout.strip().isdigit():
            self.slurm.jobs.append(done.stdout.strip())
        return done

    def job(self, *options: str) -> str:
        """Submit and return the job's number, which must be all that is printed."""
        done = self.submit(*options)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"\d+\n", done.stdout)
        return done.stdout.strip()

    def refused(self, code: str, *options: str, **variables: str) -> str:
        done = self.submit(*options, **variables)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert re.findall(r"^error\[(R\d+)\]", done.stderr, re.MULTILINE) == [code], done.stderr
        return done.stderr

    def jobs(self) -> str:
        """Numbers of all jobs that Slurm knows of this folder."""
        return ask("squeue", "--noheader", "--states=all", f"--name={self.folder.name}", "--format=%i")


@pytest.fixture
def project(slurm: Slurm, tmp_path: Path) -> Project:
    """A run of one epoch, under a name of its own in the queue; its samples can be slowed down."""
    folder = tmp_path / f"submit-{os.getpid()}-{abs(hash(tmp_path)) % 10**8}"
    write_project(folder, spec(resources__job_name=folder.name, **SMALL))
    return Project(folder, slurm)


def test_dry_run_and_live_check_submit_nothing(project: Project) -> None:
    done = project.submit("--dry-run", "--live-check")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert re.search(r"Job \d+ to start at ", done.stderr)
    assert not (project.folder / "compiled").exists()
    assert not project.jobs()


def test_submit_waits_for_a_run_and_does_not_repeat_it(project: Project) -> None:
    done = project.submit("--wait")
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    assert "ended with status 0" in done.stderr
    facts = project.slurm.facts(job)
    assert facts["JobState"] == "COMPLETED"
    assert facts["WorkDir"] == str(project.folder)
    assert facts["JobName"] == project.folder.name
    assert results(project.folder)["status"] == "finished"
    assert (project.folder / f"demo-{job}.out").exists()
    assert "finished" in project.refused("R412")
    # Another run is another lock.
    project.job("--seed", "7")


def test_a_second_job_for_one_folder_is_refused_without_again(project: Project) -> None:
    (project.folder / "slow").write_text("2")
    first = project.job()
    assert f"job {first} is" in project.refused("R412")
    assert "needs the files" in project.refused("R412", "--epochs", "2")
    second = project.job("--again", "--after", first)
    assert project.slurm.facts(second)["Dependency"].startswith(f"afterok:{first}")
    subprocess.run(["scancel", first, second], check=True)
    project.slurm.wait_for_end(first)
    project.slurm.wait_for_end(second)
    project.job()


def test_submit_wait_returns_the_status_of_a_failed_job(project: Project) -> None:
    with (project.folder / "mine.py").open("a") as own:
        own.write("raise SystemExit(3)\n")
    done = project.submit("--wait")
    job = project.slurm.jobs[-1]
    state = project.slurm.facts(job)
    assert state["JobState"] == "FAILED"
    assert done.returncode == int(state["ExitCode"].split(":")[0]) != 0
    # A job that waits for one that failed can never start.
    done = project.submit("--seed", "7", "--after", job, "--wait")
    assert done.returncode == 1
    assert project.slurm.state(project.slurm.jobs[-1]) == "CANCELLED"


def test_submit_wait_reports_a_cancelled_job(project: Project) -> None:
    (project.folder / "slow").write_text("2")
    command = [sys.executable, "-m", "ratc", "submit", "spec.yaml", "--wait"]
    environment = {**os.environ, **for_jobs(), "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    with subprocess.Popen(
        command, cwd=project.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        job = process.stdout.readline().strip()
        project.slurm.jobs.append(job)
        subprocess.run(["scancel", job], check=True)
        assert process.wait(timeout=120) != 0
    assert project.slurm.state(job) == "CANCELLED"


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        (("--partition", "nope"), "--partition=nope", "Invalid partition name"),
        (("--walltime", "9-00:00:00"), "--walltime=9-00:00:00", "Requested time limit is invalid"),
        (("--nodes", "8", "--batch-size", "1"), "--nodes=8", "Node count specification invalid"),
        (("--set", "resources.cpus=99"), "--set", "More processors requested than permitted"),
        (("--partition", "small", "--nodes", "2", "--batch-size", "4"), "--nodes", "Node count specification invalid"),
    ],
)
def test_r414_points_at_the_key_that_slurm_would_refuse(
    project: Project, options: tuple[str, ...], key: str, words: str
) -> None:
    # Without facts of the cluster only Slurm itself can know.
    path = project.folder / "spec.yaml"
    path.write_text(re.sub(r"\n  cluster: .*", "", path.read_text()))
    for check in (("--live-check",), ()):
        err = project.refused("R414", *options, *check)
        assert words in err
        place = next(line for line in err.split("error[R414]")[1].splitlines() if "-->" in line)
        assert key.split("=")[0].split(" ")[0] in place
    assert not project.jobs()


def test_submit_inside_a_job(project: Project) -> None:
    path = project.folder / "inside.sh"
    path.write_text(
        f"#!/bin/bash\nexport PYTHONPATH='{ROOT}:{ROOT / 'runtime'}'\n'{sys.executable}' -m ratc submit spec.yaml\n"
        f"echo status $?\n'{sys.executable}' -m ratc submit spec.yaml --dry-run\necho status $?\n"
    )
    job = project.slurm.submit(path, "--output=inside.out", folder=project.folder)
    project.slurm.wait_for_end(job)
    said = (project.folder / "inside.out").read_text()
    assert f"inside Slurm's job {job}" in said
    assert re.findall(r"^status (\d)$", said, re.MULTILINE) == ["1", "0"]
    assert not project.jobs()
