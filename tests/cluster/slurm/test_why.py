"""`ratc why` for jobs of a real Slurm that failed for different reasons."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm.cluster import Slurm
from tests.cluster.slurm.test_jobs import CLUSTER, ONE
from tests.helpers.jobs import for_jobs, spec, write_project
from tests.helpers.waiting import wait_until
from tests.places import ROOT

pytestmark = pytest.mark.slow


def ratc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder; it knows the tests' Python as a job does."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "runtime")))
    variables = {**os.environ, **for_jobs(), "PYTHONPATH": path, "RATC_TRUST": "1"}
    command = [sys.executable, "-m", "ratc", *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def submitted(folder: Path, own: str = "", slow: float | None = None, **changes: Any) -> str:
    """Submit a project whose data set begins with other code; returns the job's number."""
    write_project(folder, spec(resources__cluster=CLUSTER, **ONE, **changes), slow)
    (folder / "mine.py").write_text(own + (folder / "mine.py").read_text())
    done = ratc(folder, "submit", "spec.yaml")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_why_names_the_cause_of_each_failed_job(slurm: Slurm, tmp_path: Path) -> None:
    out_of_time = submitted(
        tmp_path / "time", slow=2.0, resources__walltime="00:02", checkpoint__requeue="never", training__epochs=50
    )
    own = submitted(tmp_path / "own", "raise ValueError('an odd start')\n")
    missing = submitted(tmp_path / "module", "import not_there\n")
    data = submitted(tmp_path / "data", data__data_dir="nowhere")
    cancelled = submitted(tmp_path / "cancelled", slow=2.0, training__epochs=50)

    slurm.jobs += [out_of_time, own, missing, data, cancelled]
    running = tmp_path / "cancelled"
    wait_until(lambda: any("global batch" in path.read_text() for path in running.glob("demo-*.out")), "it trains")
    told = ratc(running, "why")
    assert (told.returncode, f"job {cancelled} is running" in told.stdout) == (0, True), told.stdout
    slurm.cancel(cancelled)

    wanted = {
        "own": (own, "R509", "an odd start"),
        "module": (missing, "R509", "not_there"),
        "data": (data, "R506", "spec.yaml:"),
        "cancelled": (cancelled, "R604", "was cancelled"),
        "time": (out_of_time, "R601", "it saved before it ended"),
    }
    for name, (job, code, words) in wanted.items():
        slurm.wait_for_end(job)
        told = ratc(tmp_path / name, "why", job)
        assert told.returncode == 1, told.stderr
        assert told.stdout.startswith(f"error[{code}]: "), (name, told.stdout)
        assert words in told.stdout
        assert f"job {job} is " in told.stdout
