"""`ratc why` for jobs of a real Slurm that failed for different reasons."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm.cluster import Slurm
from tests.cluster.slurm.test_jobs import CLUSTER, ONE, TWO
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


def submitted(folder: Path, own: str = "", slow: float | None = None, sample: str = "", **changes: Any) -> str:
    """Submit a project whose data set begins with other code, or gives its samples by it; returns the job's number."""
    write_project(folder, spec(**{"resources__cluster": CLUSTER, **ONE, **changes}), slow)
    text = (folder / "mine.py").read_text()
    (folder / "mine.py").write_text(
        own + "asked = []\n" + text.replace("        return super()", f"        {sample}\n        return super()")
    )
    return resubmitted(folder)


def resubmitted(folder: Path, *options: str) -> str:
    done = ratc(folder, "submit", "spec.yaml", *options)
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


#: Faults of `docs/develop/faults.md` in a sample: what it does, the cause that is named, and words of it.
FAULTS = {
    "exits": ("import sys; sys.exit(3)", "R565", "mine.py"),
    "killed": ("import signal; os.kill(os.getpid(), signal.SIGKILL)", "R615", "resources.memory"),
    "not-a-number": ("", "R507", "training.learning_rate"),
    # After the first step, which may take longer than the others.
    "hangs": ("asked.append(index); time.sleep(900 if len(asked) > 40 else 0)", "R525", ""),
}


def test_why_names_the_fault_of_each_failed_job(slurm: Slurm, tmp_path: Path) -> None:
    odd = "def odd():\n    return lambda output, target: output.mean() * float('nan')\n"
    options: dict[str, dict[str, Any]] = {
        "hangs": {"distributed__timeout_seconds": 20},
        "not-a-number": {"own": odd, "training__loss": "mine:odd"},
    }
    jobs = {
        name: submitted(tmp_path / name, sample=sample, **options.get(name, {}))
        for name, (sample, _, _) in FAULTS.items()
    }
    first = submitted(tmp_path / "twice", slow=2.0, training__epochs=50)
    (tmp_path / "no-place").mkdir()
    (tmp_path / "no-place/taken").touch()
    no_place = submitted(tmp_path / "no-place/project", output_dir="../taken/outputs")
    slurm.jobs += [*jobs.values(), first, no_place]
    wait_until(lambda: any("global batch" in path.read_text() for path in (tmp_path / "twice").glob("*.out")), "trains")
    second = resubmitted(tmp_path / "twice", "--again")
    slurm.jobs.append(second)

    wanted = {name: (jobs[name], tmp_path / name, code, words) for name, (_, code, words) in FAULTS.items()}
    wanted["twice"] = (second, tmp_path / "twice", "R517", first)
    wanted["no-place"] = (no_place, tmp_path / "no-place/project", "R607", "spec.yaml:")
    for name, (job, folder, code, words) in wanted.items():
        slurm.wait_for_end(job)
        told = ratc(folder, "why", job)
        assert told.returncode == 1, (name, told.stdout, told.stderr)
        assert told.stdout.startswith(f"error[{code}]: "), (name, told.stdout)
        assert words in told.stdout, (name, told.stdout)
    slurm.cancel(first)


#: Faults of one process of two, each on a node of its own: what it does, the cause that is named, and words of it.
ON_ONE_NODE = {
    "killed": ("import signal; os.kill(os.getpid(), signal.SIGKILL)", "R615", "signal 9"),
    "raises": ("raise LookupError('no such slide')", "R506", "no such slide"),
    "hangs": ("asked.append(index); time.sleep(900 if len(asked) > 20 else 0)", "R525", "rank 1"),
    "exits": ("import sys; sys.exit(3)", "R565", "mine.py"),
}


def test_why_names_the_fault_of_one_node_of_two(slurm: Slurm, tmp_path: Path) -> None:
    jobs = {
        name: submitted(
            tmp_path / name, sample=f"if os.environ['RANK'] == '1': {fault}", **TWO, distributed__timeout_seconds=20
        )
        for name, (fault, _, _) in ON_ONE_NODE.items()
    }
    slurm.jobs += jobs.values()
    for name, (_, code, words) in ON_ONE_NODE.items():
        slurm.wait_for_end(jobs[name])
        told = ratc(tmp_path / name, "why", jobs[name])
        assert told.returncode == 1, (name, told.stdout, told.stderr)
        assert told.stdout.startswith(f"error[{code}]: "), (name, told.stdout)
        assert words in told.stdout, (name, told.stdout)
