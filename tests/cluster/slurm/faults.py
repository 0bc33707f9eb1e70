"""Faults of jobs, most of them those of docs/develop/faults.md, and what `ratc why` says of each."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.cluster.slurm.cluster import Slurm
from tests.cluster.slurm.test_jobs import DIRECT as ONE
from tests.cluster.slurm.test_jobs import TWO
from tests.helpers.jobs import for_jobs, rank_processes

#: Takes long enough that something can be done to it while it trains.
LONG = {"slow": 0.5, "training__epochs": 50, "checkpoint__requeue": "never"}
#: How long a hang may last.
SOON = {"distributed__timeout_seconds": 20}


@dataclass(frozen=True)
class Job:
    """A submitted job, and the folder of its project."""

    slurm: Slurm
    folder: Path
    number: str

    @property
    def output(self) -> Path:
        return self.folder / "outputs/demo"

    def rank(self, rank: int) -> int:
        """The number of a rank's process."""
        return rank_processes(RAT_OUTPUT_DIR=str(self.output))[rank]


@dataclass(frozen=True)
class Fault:
    """A project with a fault, and what `ratc why` says of its job: the code, and words.

    ``sample`` is run for each sample that the data set gives, ``loss`` for each batch, ``own`` when the project's code
    is imported, and ``program`` in place of ratc's own loop. ``prepare`` changes the folder before it is submitted, and
    ``then`` does something to the job while it trains; it may return another job, which is then the one to be
    explained. ``after`` names the fault whose folder is used once more, when its job has ended.
    """

    code: str
    words: str = ""
    sample: str = ""
    loss: str = ""
    own: str = ""
    program: str = ""
    prepare: Callable[[Path], object] | None = None
    then: Callable[[Job], Job | None] | None = None
    after: str = ""
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


def of_the_second(what: str) -> str:
    """Code that only the second rank runs."""
    return f"if os.environ['RANK'] == '1': {what}"


def to_rank(rank: int, number: int) -> Callable[[Job], None]:
    """Send a signal to a rank."""
    return lambda job: os.kill(job.rank(rank), number)


def to_parent_of_rank(rank: int) -> Callable[[Job], None]:
    """Kill the launcher that has started a rank."""
    return lambda job: _kill_parent(job.rank(rank))


def to_parent_of_program(job: Job) -> None:
    """Kill the process that has started a user's program, which has written its own number."""
    _kill_parent(int((job.folder / "pid").read_text()))


def _kill_parent(process: int) -> None:
    status = Path(f"/proc/{process}/status").read_text()
    (parent,) = re.findall(r"^PPid:\s*(\d+)", status, re.MULTILINE)
    os.kill(int(parent), signal.SIGKILL)


def again(job: Job) -> Job:
    """Submit the same job once more, while the first one trains; the second is the one to be explained."""
    return replace(job, number=job.slurm.submit("job/job.sbatch", folder=job.folder, **for_jobs()))


def cancel(job: Job) -> None:
    """Cancel the job, as its user would."""
    job.slurm.cancel(job.number)


def stop(job: Job) -> None:
    """Ask the run to stop."""
    (job.output / "STOP").touch()


def stop_on_a_full_disk(job: Job) -> None:
    """Ask the run to stop, on a disk without room."""
    stop(job)
    with contextlib.suppress(OSError), (job.output / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def taken(folder: Path) -> None:
    """Have a file where the output folder's parent should be."""
    (folder / "taken").touch()


def cut(pattern: str) -> Callable[[Path], None]:
    """Leave the first half of the files that match."""

    def halve(folder: Path) -> None:
        paths = [path for path in folder.glob(pattern) if not path.is_symlink()]
        assert paths
        for path in paths:
            os.truncate(path, path.stat().st_size // 2)

    return halve


def disk(size: str) -> Callable[[Path], None]:
    """Have the output folder on a disk of its own."""

    def mount(folder: Path) -> None:
        output = folder / "outputs/demo"
        kept = {path.name: path.read_bytes() for path in output.glob("*")}
        output.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", output], check=True)
        for name, content in kept.items():
            (output / name).write_bytes(content)

    return mount


def changed(old: str, new: str) -> Callable[[Path], None]:
    """Change a line of the spec."""

    def write(folder: Path) -> None:
        text = (folder / "spec.yaml").read_text()
        assert old in text
        (folder / "spec.yaml").write_text(text.replace(old, new))

    return write


KILLS_ITSELF = "os.kill(os.getpid(), signal.SIGKILL)"
WAITS = """import os, time
open("pid", "w").write(str(os.getpid()))
print("epoch 1/1  step 1", flush=True)
time.sleep(900)
"""
STOPPED = "SIGTERM, SIGUSR2 to the process group, or a `STOP` file"
CHANGED = "the lock changed between runs"

#: By the words of docs/develop/faults.md. Those that take longest are the first.
FAULTS: dict[str, Fault] = {
    "code hangs that never releases Python's interpreter lock": Fault(
        "R525",
        # Its timer is set for the usual time a while after the first step.
        sample="asked.append(0); time.sleep(8 * (len(asked) == 50)); len(asked) > 50 and ctypes.PyDLL(None).sleep(900)",
        changes={**SOON, **ONE},
    ),
    "SIGTERM, SIGINT, SIGUSR2 to one rank of two": Fault(
        "R604", "it saved before it ended", then=to_rank(1, signal.SIGTERM), changes={**LONG, **TWO}
    ),
    "`kill -9` of a rank": Fault("R615", "signal 9", then=to_rank(1, signal.SIGKILL), changes={**LONG, **TWO}),
    "`kill -9` of the launcher": Fault(
        "R615", "it saved before it ended", then=to_parent_of_rank(1), changes={**LONG, **TWO}
    ),
    "a rank hangs in the dataset": Fault(
        "R525",
        "rank 1",
        sample=of_the_second("asked.append(index); time.sleep(900 if len(asked) > 20 else 0)"),
        changes={**SOON, **TWO},
    ),
    "a rank hangs in the model, with Accelerate": Fault(
        "R525",
        "hangs in `forward`",
        loss=of_the_second("asked.append(1); time.sleep(900 if len(asked) > 4 else 0)"),
        changes={**SOON, **TWO},
    ),
    "the main rank is stopped (SIGSTOP)": Fault(
        "R525", "does not answer", then=to_rank(0, signal.SIGSTOP), changes={**LONG, **SOON, **TWO}
    ),
    "the loss is NaN on one rank only": Fault(
        "R507", "on rank 1", loss=of_the_second("target = target * float('nan')"), changes=TWO
    ),
    "an exception of the user's code on one rank": Fault(
        "R609", "mine.py", loss=of_the_second("raise LookupError('no such organ')"), changes=TWO
    ),
    "fewer or more processes than the lock says": Fault(
        "R610", "has 1 nodes, the lock 2", options=("--nodes=1",), changes=TWO
    ),
    STOPPED: Fault("R604", "the file STOP", then=stop, changes={**LONG, **ONE}),
    CHANGED: Fault("R518", "0.003 -> 0.001", after=STOPPED, prepare=changed("rate: 0.003", "rate: 0.001")),
    "a damaged checkpoint": Fault(
        "R508", "cannot be read", after=CHANGED, prepare=cut("outputs/demo/checkpoints/*.pt")
    ),
    "two runs with one output folder": Fault("R517", "another run writes", then=again, changes={**LONG, **ONE}),
    "a single process hangs": Fault(
        # After the first step, which may take longer than the others.
        "R525",
        "in `loader`",
        sample="asked.append(index); time.sleep(900 if len(asked) > 40 else 0)",
        changes={**SOON, **ONE},
    ),
    "a loader process hangs": Fault(
        "R525",
        "in `loader`",
        sample="asked.append(index); time.sleep(900 if len(asked) > 20 and multiprocessing.parent_process() else 0)",
        changes={**SOON, **ONE, "data__num_workers": 1},
    ),
    "`kill -9` of the process that starts a user's program (`entrypoint`)": Fault(
        "R615", "signal 9", program=WAITS, then=to_parent_of_program
    ),
    "the loss is NaN at step k": Fault(
        "R507", "training.learning_rate", loss="target = target * float('nan')", changes=ONE
    ),
    "the same in a debug run": Fault(
        "R526",
        "debug.log",
        loss="target = target * float('nan')",
        changes={**ONE, "debug": True, "output_dir": "outputs/demo"},
    ),
    "out of memory in a step": Fault(
        "R511", loss="raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')", changes=ONE
    ),
    "a corrupt or missing image or mask": Fault(
        "R506", "train7.png", prepare=cut("data/images/train7.png"), changes=ONE
    ),
    "a loader process is killed": Fault(
        "R513",
        "data.num_workers",
        sample="multiprocessing.parent_process() and os.kill(os.getpid(), signal.SIGKILL)",
        changes={**ONE, "data__num_workers": 1},
    ),
    "no checkpoint can be written in the whole run": Fault("R562", "output_dir", prepare=disk("96k"), changes=ONE),
    "a run is asked to stop and cannot save": Fault(
        "R519", "output_dir", prepare=disk("2m"), then=stop_on_a_full_disk, changes={**LONG, **ONE}
    ),
    "the user's code calls `exit()`": Fault("R565", "mine.py", sample="sys.exit(3)", changes=ONE),
    "a variable of the environment overrides the lock": Fault(
        "R600", "has finished", variables={"ACCELERATE_MIXED_PRECISION": "fp16", "PET_NPROC_PER_NODE": "3"}
    ),
    "the output folder cannot be written": Fault(
        "R607", "spec.yaml:", prepare=taken, changes={**ONE, "output_dir": "taken/outputs"}
    ),
}

#: Others, by a name.
OTHERS: dict[str, Fault] = {
    "too little time": Fault(
        "R601", "it saved before it ended", changes={**LONG, **ONE, "resources__walltime": "00:02"}
    ),
    "cancelled": Fault("R604", "was cancelled", then=cancel, changes={**LONG, **ONE}),
    "code that fails": Fault("R509", "an odd start", own="raise ValueError('an odd start')", changes=ONE),
    "no module": Fault("R509", "not_there", own="import not_there", changes=ONE),
    "no data": Fault("R506", "spec.yaml:", changes={**ONE, "data__data_dir": "nowhere"}),
    "killed": Fault("R615", "resources.memory", sample=KILLS_ITSELF, changes=ONE),
    "one rank without data": Fault(
        "R506", "no such slide", sample=of_the_second("raise LookupError('no such slide')"), changes=TWO
    ),
    "one rank that exits": Fault("R565", "mine.py", sample=of_the_second("sys.exit(3)"), changes=TWO),
    "another batch than the plan's": Fault(
        "R503", "micro_batch_size: 3", program="import ratc_runtime; ratc_runtime.plan().verify(micro_batch_size=3)"
    ),
    "a killed program": Fault("R615", "signal 9", program=f"import os, signal\n{KILLS_ITSELF}"),
}
