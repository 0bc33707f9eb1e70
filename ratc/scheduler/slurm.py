"""Slurm's side of a submission. Rules: sbatch(1), scontrol(1); tried with Slurm 22.05."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ratc.scheduler.dialect import AccountingRecord, Answer, End, Task
from ratc.units import memory_bytes, walltime_seconds

#: States that a job does not leave (squeue(1), "JOB STATE CODES").
ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
#: Options of sbatch with another variable than `SBATCH_` and their name (sbatch(1), "INPUT ENVIRONMENT VARIABLES").
_VARIABLES = {"array": "ARRAY_INX", "mem": "MEM_PER_NODE", "time": "TIMELIMIT", "no-requeue": "REQUEUE"}
#: What states mean (squeue(1), "JOB STATE CODES").
_ENDS = {
    **dict.fromkeys(
        ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"), End.RUNNING
    ),
    **dict.fromkeys(("PENDING", "REQUEUED", "CONFIGURING", "REQUEUE_HOLD", "SPECIAL_EXIT"), End.WAITING),
    **dict.fromkeys(("REQUEUE_FED", "RESV_DEL_HOLD"), End.WAITING),
    **dict.fromkeys(("TIMEOUT", "DEADLINE"), End.TIME),
    **dict.fromkeys(("NODE_FAIL", "BOOT_FAIL"), End.NODE),
    **dict.fromkeys(("CANCELLED", "REVOKED"), End.CANCELLED),
    "COMPLETED": End.WELL,
    "FAILED": End.FAILED,
    "OUT_OF_MEMORY": End.MEMORY,
    "PREEMPTED": End.PREEMPTED,
}
#: The fields of a record, those last in which a `|` may stand.
_FIELDS = "JobID,State,ExitCode,NodeList,ElapsedRaw,TimelimitRaw,MaxRSS,ReqMem,Reason,WorkDir"


class Slurm:
    """sbatch, and scontrol for the rest: squeue leaves out ended jobs, sacct needs a database."""

    name = "Slurm"
    programs = ("sbatch", "scontrol")
    script = "job.sbatch"
    inside = "SLURM_JOB_ID"
    cluster_command = ("scontrol", "show", "config")

    def cluster(self, answer: Answer) -> str | None:
        """The cluster's name in the answer of `scontrol show config`. The controller answers that command itself, so an
        answer also shows that it runs.
        """
        match = re.search(r"^ClusterName\s*=\s*(\S+)", answer.out, re.MULTILINE)
        return match[1] if answer.status == 0 and match else None

    def submit(self, script: str, after: Sequence[str]) -> tuple[tuple[str, ...], bool]:
        """The command of sbatch. `--parsable` prints `ID` or `ID;CLUSTER`. A job with a dependency that can never be
        met is cancelled, not kept.
        """
        return ("sbatch", "--parsable", *_after(after), script), False

    def check(self, script: str, after: Sequence[str]) -> tuple[str, ...]:
        """The command of sbatch with `--test-only`, which asks the controller and uses up a job number."""
        return ("sbatch", "--test-only", *_after(after), script)

    def job(self, answer: Answer) -> str | None:
        """The number on the last line: a site's own plugin may print others before it."""
        lines = answer.out.split()
        match = re.fullmatch(r"([0-9]+)(?:;.*)?", lines[-1]) if lines else None
        return match[1] if match else None

    def may_have_submitted(self, answer: Answer) -> bool:
        """Whether a failed sbatch may have submitted the job: `Socket timed out on send/recv operation` is printed for
        jobs that are in the queue, too.
        """
        return answer.status is None or "timed out" in answer.err

    def state(self, job: str) -> tuple[str, ...]:
        """The command of scontrol, without `-o`: on one line, a job's name could look like a field."""
        return ("scontrol", "show", "job", job)

    def tasks(self, answer: Answer) -> tuple[Task, ...] | None:
        """The tasks in the answer of scontrol: one for each started task of an array, and one for those that wait."""
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

    def record_commands(self, job: str) -> tuple[tuple[str, ...], ...]:
        """sacct, with `--duplicates` for the starts before a requeue; then scontrol, whose controller knows a finished
        job for some minutes.
        """
        sacct = ("sacct", f"--jobs={job}", "--duplicates", "--parsable2", "--noheader", f"--format={_FIELDS}")
        return sacct, ("scontrol", "show", "job", job)

    def records(self, answer: Answer) -> tuple[AccountingRecord, ...]:
        """The records in the answer of sacct or scontrol. sacct prints a line for each start, and one for each of its
        steps; only the lines of steps have the used memory.
        """
        if answer.status != 0:
            return ()
        if answer.command == "scontrol":
            blocks = re.split(r"\n\s*\n", answer.out)
            return tuple(record for block in blocks if (record := _shown(block)) is not None)
        found: list[AccountingRecord] = []
        for line in answer.out.splitlines():
            words = line.split("|", 9)
            if len(words) < 10:
                continue
            task, dot, _ = words[0].partition(".")
            used = _bytes(words[6])
            if not dot:
                found.append(_record(words))
            elif used is not None and found and found[-1].task == task:
                found[-1] = replace(found[-1], memory=max(used, found[-1].memory or 0))
        return tuple(found)

    def queue(self) -> str:
        """The command that lists a person's own jobs."""
        return "squeue --me"

    def cancel(self, job: str) -> str:
        """The command that cancels a job, with all tasks of an array."""
        return f"scancel {job}"

    def log(self, name: str, job: str, array: bool) -> str:
        """The log of a job, `%j` in the script, or of an array's tasks, `%A_%a`."""
        return f"{name}-{job}{'_*' if array else ''}.out"

    def overridden(self, script: str, environment: Sequence[str]) -> tuple[str, ...]:
        """The variables of sbatch, which override a script's directives."""
        options = re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)
        names = {"SBATCH_" + _VARIABLES.get(option, option.upper().replace("-", "_")) for option in options}
        return tuple(sorted(names & set(environment)))


def _record(words: Sequence[str]) -> AccountingRecord:
    """The record in a line of sacct's."""
    task, told, code, hosts, ran, limit, used, asked, reason, place = words
    state = told.split()[0] if told.split() else "UNKNOWN"
    by = " ".join(told.split()[1:])
    reason = "" if reason in ("None", "") else reason
    return AccountingRecord(
        task,
        state,
        _ENDS.get(state, End.UNKNOWN),
        by or reason,
        _status(state, re.match(r"(\d+):(\d+)", code)),
        "" if hosts.startswith("None") else hosts,
        int(ran) if ran.isdigit() else None,
        int(limit) * 60 if limit.isdigit() else None,
        _bytes(used),
        _bytes(asked),
        place,
    )


def _shown(block: str) -> AccountingRecord | None:
    """The record in a block of `scontrol show job`; no value but a job's name can look like a field."""

    def told(name: str) -> str:
        match = re.search(rf"(?m)^ +(?:\S+ +)*?{name}=(\S*)", block)
        return "" if match is None or match[1] in ("(null)", "None") else match[1]

    job = re.match(r"\s*JobId=(\d+)(?: ArrayJobId=(\d+) ArrayTaskId=(\d+))?", block)
    state = re.search(r"^\s+JobState=(\w+)", block, re.MULTILINE)
    if job is None or state is None:
        return None
    ran, limit = (_seconds(told(name)) for name in ("RunTime", "TimeLimit"))
    # A folder may have spaces in its name.
    place, log = (re.search(rf"(?m)^   {name}=(.*)$", block) for name in ("WorkDir", "StdOut"))
    return AccountingRecord(
        f"{job[2]}_{job[3]}" if job[2] else job[1],
        state[1],
        _ENDS.get(state[1], End.UNKNOWN),
        told("Reason"),
        _status(state[1], re.search(r"\sExitCode=(\d+):(\d+)", block)),
        told("NodeList"),
        ran,
        limit,
        None,
        _bytes(told("MinMemoryNode")),
        place[1] if place else "",
        log[1] if log else "",
    )


def _seconds(text: str) -> int | None:
    return walltime_seconds(text) if re.fullmatch(r"(\d+-)?\d+:\d+:\d+", text) else None


def _bytes(text: str) -> int | None:
    """Return the bytes of a size such as `512M`, or `512Mn` as in Slurm before 21.08; a bare number is bytes."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)[nc]?", text)
    if match is None or float(match[1]) == 0:
        return None
    return memory_bytes(match[1] + match[2]) if match[2] else int(float(match[1]))


def _after(jobs: Sequence[str]) -> tuple[str, ...]:
    return (f"--dependency=afterok:{':'.join(jobs)}", "--kill-on-invalid-dep=yes") if jobs else ()


def _status(state: str, code: re.Match[str] | None) -> int | None:
    """Return the status as a shell gives it: 128 + signal after a signal; never 0 for a job that did not complete."""
    if state not in ENDED:
        return None
    status, signal = (int(code[1]), int(code[2])) if code else (0, 0)
    # Above the signals of Linux are Slurm's own numbers: 125 for a job that was out of memory.
    return status or (128 + signal if 0 < signal < 65 else int(state != "COMPLETED"))
