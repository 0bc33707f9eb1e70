"""`ratc why` for jobs of a real Slurm that failed, each for another reason."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratc.cli import main
from ratc.fitting.check_batch import SKIP
from ratc.own_code import trust
from tests.cluster.slurm.cluster import ENDED, Slurm
from tests.cluster.slurm.faults import FAULTS, OTHERS, Fault, Job
from tests.cluster.slurm.test_jobs import CLUSTER
from tests.helpers import jobs
from tests.helpers.jobs import SLOW, as_soon_as, for_jobs, spec, write_project
from tests.places import ROOT

#: The code of a project: what the fault has of its own, and the data set of other tests with a line of the fault's.
CODE = """import ctypes, multiprocessing, os, signal, sys, time
import torch
{own}
asked = []
{data}
def odd():
    def loss(output, target):
        {loss}
        return torch.nn.functional.binary_cross_entropy_with_logits(output, target)
    return loss
"""
#: Eight of them run at once on the cluster's four nodes.
CHANGES = {"resources__cluster": CLUSTER, "resources__cpus": 8, "data__num_workers": 0}
#: What a spec of a program has, in place of that of ratc's own loop.
PROGRAM = {
    "entrypoint": {"script": "train.py"},
    "launcher": "torchrun",
    "training": {"epochs": 1, "learning_rate": 3e-3, "target_batch_size": 8, "batch_size": 4},
}
ALL = {**OTHERS, **FAULTS}
TABLE = ROOT / "docs/develop/faults.md"


class Started:
    """The jobs of all faults, submitted at once; those that follow another one when they are asked for."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm = slurm
        self.jobs: dict[str, Job] = {}
        for number, (name, fault) in enumerate(ALL.items()):
            if not fault.after:
                write(folder / str(number), fault)
                self.jobs[name] = self._submit(folder / str(number), fault)
        waiting = {job.folder: name for name, job in self.jobs.items() if ALL[name].then}
        as_soon_as(self._trains, {folder: lambda name=name: self._act(name) for folder, name in waiting.items()})

    def __getitem__(self, name: str) -> Job:
        """The job of a fault, which has ended."""
        if name not in self.jobs:
            self.jobs[name] = self._submit(self[ALL[name].after].folder, ALL[name])
        self.slurm.wait_for_end(self.jobs[name].number)
        return self.jobs[name]

    def _submit(self, folder: Path, fault: Fault) -> Job:
        if fault.prepare:
            fault.prepare(folder)
        assert main(["compile", str(folder / "spec.yaml"), "--target", "slurm", "-o", str(folder / "job")]) == 0
        given = {**for_jobs(), **fault.variables}
        return Job(self.slurm, folder, self.slurm.submit("job/job.sbatch", *fault.options, folder=folder, **given))

    def _trains(self, folder: Path) -> bool:
        log = "".join(path.read_text() for path in folder.glob("demo-*.out"))
        number = next(job.number for job in self.jobs.values() if job.folder == folder)
        assert self.slurm.state(number) not in ENDED, log
        return "  step " in log

    def _act(self, name: str) -> None:
        act, job = ALL[name].then, self.jobs[name]
        assert act is not None
        self.jobs[name] = act(job) or job


def write(folder: Path, fault: Fault) -> None:
    """Write the project of a fault."""
    changes = {**CHANGES, **fault.changes, **({"training__loss": "mine:odd"} if fault.loss else {})}
    slow = changes.pop("slow", None)
    content = spec(**changes)
    if fault.program:
        content = {**{key: content[key] for key in ("experiment_name", "resources", "checkpoint")}, **PROGRAM}
    write_project(folder, content, slow)
    data = SLOW.replace("        return super()", f"        {fault.sample}\n        return super()")
    (folder / "mine.py").write_text(CODE.format(own=fault.own, data=data, loss=fault.loss))
    (folder / "train.py").write_text(fault.program)


@pytest.fixture(scope="module")
def started(_daemons: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    slurm, folder = Slurm(), tmp_path_factory.mktemp("why")
    try:
        with pytest.MonkeyPatch.context() as patch:
            # As for a test alone, which begins later.
            for name, value in {trust.VARIABLE: "1", SKIP: "1", "RATC_CACHE": str(folder / "cache")}.items():
                patch.setenv(name, value)
            yield Started(slurm, folder)
    finally:
        slurm.cancel_all()
        for disk in folder.glob("*/outputs/demo"):
            if disk.is_mount():
                subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow(every=True)
@pytest.mark.parametrize("name", ALL)
def test_why_names_the_cause_of_each_failed_job(started: Started, name: str) -> None:
    job, fault = started[name], ALL[name]
    told = jobs.ratc(job.folder, "why", job.number)
    assert told.stdout.startswith(f"{'note' if fault.code == 'R600' else 'error'}[{fault.code}]: "), told.stdout
    assert fault.words in told.stdout, told.stdout
    assert f"job {job.number} is " in told.stdout
    assert told.returncode == (fault.code != "R600"), told.stderr


def test_a_job_that_trains_has_no_cause(started: Started) -> None:
    """Of two runs with one output folder, the first goes on."""
    folder = started["two runs with one output folder"].folder
    first = min(folder.glob("demo-*.out"), key=lambda path: int(path.stem.removeprefix("demo-")))
    told = jobs.ratc(folder, "why", first.stem.removeprefix("demo-"))
    assert (told.returncode, "is running" in told.stdout) == (0, True), told.stdout


def test_the_table_of_faults_says_what_why_names() -> None:
    """Those without a code end no job. Some name another row, or another file of tests on Slurm."""
    rows = [[cell.strip() for cell in line.split(" | ")] for line in TABLE.read_text().splitlines() if line[:2] == "| "]
    told = {row[0].removeprefix("| "): row[2] for row in rows[2:]}
    known = {name: code for name, code in told.items() if re.fullmatch(r"R\d{3}", code)}
    assert known == {name: fault.code for name, fault in FAULTS.items()}
    for code in set(told.values()) - set(known.values()):
        other = re.fullmatch(r"(R\d{3}), as (.*)|R\d{3} \(`test_\w+\.py`\)|none", code)
        assert other, code
        assert other[1] is None or known[other[2]] == other[1]
