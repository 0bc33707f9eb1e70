"""Slurm's side of a submission. Rules: sbatch(1), scontrol(1); tried with Slurm 22.05."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ratc.scheduler.dialect import Answer, Task

#: States that a job does not leave (squeue(1), "JOB STATE CODES").
ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
#: Options of sbatch with another variable than `SBATCH_` and their name (sbatch(1), "INPUT ENVIRONMENT VARIABLES").
_VARIABLES = {"array": "ARRAY_INX", "mem": "MEM_PER_NODE", "time": "TIMELIMIT", "no-requeue": "REQUEUE"}


class Slurm:
    """sbatch, and scontrol for the rest: squeue leaves out ended jobs, sacct needs a database."""

    name = "Slurm"
    programs = ("sbatch", "scontrol")
    script = "job.sbatch"
    inside = "SLURM_JOB_ID"
    hello = ("scontrol", "show", "config")

    def cluster(self, answer: Answer) -> str | None:
        """The controller itself answers `scontrol show config`, so this also says that it does."""
        match = re.search(r"^ClusterName\s*=\s*(\S+)", answer.out, re.MULTILINE)
        return match[1] if answer.status == 0 and match else None

    def submit(self, script: str, after: Sequence[str]) -> tuple[tuple[str, ...], bool]:
        """`--parsable` prints `ID` or `ID;CLUSTER`. A job whose dependency can never be met is cancelled, not kept."""
        return ("sbatch", "--parsable", *_after(after), script), False

    def check(self, script: str, after: Sequence[str]) -> tuple[str, ...]:
        """`--test-only` asks the controller; it uses up a job number."""
        return ("sbatch", "--test-only", *_after(after), script)

    def job(self, answer: Answer) -> str | None:
        """The last line: a site's own plugin may print others before it."""
        lines = answer.out.split()
        match = re.fullmatch(r"([0-9]+)(?:;.*)?", lines[-1]) if lines else None
        return match[1] if match else None

    def unsure(self, answer: Answer) -> bool:
        """`Socket timed out on send/recv operation` comes for jobs that are in the queue, too."""
        return answer.status is None or "timed out" in answer.err

    def state(self, job: str) -> tuple[str, ...]:
        """Without `-o`: on one line, a job's name could look like a field."""
        return ("scontrol", "show", "job", job)

    def tasks(self, answer: Answer) -> tuple[Task, ...] | None:
        """One for each started task of an array, and one for those that wait."""
        if answer.status != 0:
            return () if "Invalid job id" in answer.err else None
        found = []
        for block in re.split(r"\n\s*\n", answer.out):
            job = re.match(r"\s*JobId=(\d+)", block)
            state = re.search(r"^\s+JobState=(\w+)", block, re.MULTILINE)
            code = re.search(r"\sExitCode=(\d+):(\d+)", block)
            if job and state:
                found.append(Task(job[1], state[1], _status(state[1], code)))
        return tuple(found) or None

    def queue(self) -> str:
        """Their own jobs."""
        return "squeue --me"

    def cancel(self, job: str) -> str:
        """All tasks of an array."""
        return f"scancel {job}"

    def log(self, name: str, job: str, array: bool) -> str:
        """`%j`, or `%A_%a`."""
        return f"{name}-{job}{'_*' if array else ''}.out"

    def overridden(self, script: str, environment: Sequence[str]) -> tuple[str, ...]:
        """sbatch prefers its variables to a script's directives."""
        options = re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)
        names = {"SBATCH_" + _VARIABLES.get(option, option.upper().replace("-", "_")) for option in options}
        return tuple(sorted(names & set(environment)))


def _after(jobs: Sequence[str]) -> tuple[str, ...]:
    return (f"--dependency=afterok:{':'.join(jobs)}", "--kill-on-invalid-dep=yes") if jobs else ()


def _status(state: str, code: re.Match[str] | None) -> int | None:
    """Return the status as a shell gives it: 128 + signal after a signal; never 0 for a job that did not complete."""
    if state not in ENDED:
        return None
    status, signal = (int(code[1]), int(code[2])) if code else (0, 0)
    return status or (128 + signal if signal else int(state != "COMPLETED"))
