"""LSF's side of a submission. Rules: IBM Spectrum LSF 10.1, the pages of bsub, bjobs and lsid."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ratc.scheduler.dialect import AccountingRecord, Answer, End, Task
from ratc.units import memory_bytes

#: Fields of `bjobs -o`, and of a job that ended the reason that `bjobs -l` and bacct name TERM_… for.
_FIELDS = "jobid jobindex stat exit_code exit_reason exec_host run_time runtimelimit max_mem memlimit sub_cwd"
_TERMS = (
    (r"TERM_(?:RUN|CPU)LIMIT|TERM_DEADLINE|TERM_WINDOW", End.TIME),
    (r"TERM_(?:MEMLIMIT|SWAP)", End.MEMORY),
    (r"TERM_(?:OWNER|ADMIN|FORCE_OWNER|FORCE_ADMIN)", End.CANCELLED),
    (r"TERM_PREEMPT|TERM_REQUEUE_(?:OWNER|ADMIN)", End.PREEMPTED),
    (r"TERM_(?:ZOMBI|UNKNOWN_HOST|LOAD)|lost host|host.*unavailable", End.NODE),
)


class Lsf:
    """bsub, which reads a script's directives from standard input only, bjobs and lsid."""

    name = "LSF"
    programs = ("bsub", "bjobs", "lsid")
    script = "job.lsf"
    inside = "LSB_JOBID"
    cluster_command = ("lsid",)

    def cluster(self, answer: Answer) -> str | None:
        """`My cluster name is NAME`; `lsid` fails if no management host answers."""
        match = re.search(r"^My cluster name is (\S+)", answer.out, re.MULTILINE)
        return match[1] if answer.status == 0 and match else None

    def submit(self, script: str, after: Sequence[str]) -> tuple[tuple[str, ...], bool]:
        """The command of bsub. Options on its command line override those of the script."""
        depends = ("-w", " && ".join(f"done({job})" for job in after)) if after else ()
        return ("bsub", *depends), True

    def check(self, script: str, after: Sequence[str]) -> None:
        """None: bsub can only submit. BSUB_CHK_RESREQ would check only the `select` section."""
        return

    def job(self, answer: Answer) -> str | None:
        """The number in `Job <123> is submitted to queue <normal>.`"""
        match = re.search(r"^Job <([0-9]+)> is submitted to ", answer.out, re.MULTILINE)
        return match[1] if match else None

    def may_have_submitted(self, answer: Answer) -> bool:
        """Whether a failed bsub may have submitted the job: it retries while LSF is down."""
        return answer.status is None

    def state(self, job: str) -> tuple[str, ...]:
        """The command of bjobs that prints a line for each element of an array."""
        return ("bjobs", "-noheader", "-o", "jobid jobindex stat exit_code", job)

    def tasks(self, answer: Answer) -> tuple[Task, ...] | None:
        """The tasks in the answer of bjobs. DONE and EXIT are final states; `-` stands for no exit code."""
        found = []
        for line in answer.out.splitlines():
            words = line.split()
            if len(words) == 4 and words[0].isdigit():
                found.append(Task(f"{words[0]}[{words[1]}]", words[2], _status(words[2], words[3])))
        if found:
            return tuple(found)
        return () if "is not found" in answer.err + answer.out else None

    def record_commands(self, job: str) -> tuple[tuple[str, ...], ...]:
        """bjobs, which knows a finished job for CLEAN_PERIOD (an hour), then bacct, as long as its log is kept."""
        return ("bjobs", "-a", "-noheader", "-o", f"{_FIELDS} delimiter='|'", job), ("bacct", "-l", job)

    def records(self, answer: Answer) -> tuple[AccountingRecord, ...]:
        """The record of a job's last start: LSF keeps only that one."""
        if answer.status != 0:
            return ()
        if answer.command == "bacct":
            return _historic(answer.out)
        found = []
        for line in answer.out.splitlines():
            words = [word.strip() for word in line.split("|", 10)]
            if len(words) == 11 and words[0].isdigit():
                job, index, state, code, reason, hosts, ran, limit, used, asked, place = words
                found.append(
                    AccountingRecord(
                        f"{job}[{index}]" if index not in ("", "0", "-") else job,
                        state,
                        _end(state, reason),
                        "" if reason == "-" else reason,
                        _status(state, code),
                        "" if hosts == "-" else hosts.replace(":", " "),
                        _number(ran),
                        _number(limit, 60),
                        _bytes(used),
                        _bytes(asked),
                        "" if place == "-" else place,
                    )
                )
        return tuple(found)

    def queue(self) -> str:
        """The command that lists a person's own jobs."""
        return "bjobs"

    def cancel(self, job: str) -> str:
        """The command that cancels a job, with all elements of an array."""
        return f"bkill {job}"

    def log(self, name: str, job: str, array: bool) -> str:
        """The log of a job, `%J` in the script, or of an array's elements, `%J.%I`."""
        return f"{name}-{job}{'.*' if array else ''}.out"

    def overridden(self, script: str, environment: Sequence[str]) -> tuple[str, ...]:
        """No variables: LSB_DEFAULTQUEUE and similar ones are only defaults."""
        return ()


def _historic(text: str) -> tuple[AccountingRecord, ...]:
    """Read the answer of `bacct -l`: `Job <123>, …`, then `Completed <done>` or `Completed <exit>; TERM_RUNLIMIT: …`.

    It breaks lines within words, with blanks before the rest.
    """
    text = re.sub(r"\n {10,}", "", text)
    found = []
    for block in re.split(r"(?m)^(?=Job <)", text):
        job = re.match(r"Job <(\d+)(\[\d+\])?>", block)
        end = re.search(r"Completed <(done|exit)>(?:;\s*([^\n]*))?", block)
        if job and end:
            place = re.search(r"CWD <([^>]*)>", block)
            state, reason = ("DONE" if end[1] == "done" else "EXIT"), (end[2] or "").strip()
            task = job[1] + (job[2] or "")
            found.append(AccountingRecord(task, state, _end(state, reason), reason, place=place[1] if place else ""))
    return tuple(found)


def _end(state: str, reason: str) -> End:
    if state == "DONE":
        return End.WELL
    if state == "ZOMBI":  # the host does not answer any more
        return End.NODE
    if state != "EXIT":
        waits, runs = ("PEND", "PSUSP", "WAIT", "FWD_PEND"), ("RUN", "USUSP", "SSUSP", "PROV")
        return End.WAITING if state in waits else End.RUNNING if state in runs else End.UNKNOWN
    return next((end for words, end in _TERMS if re.search(words, reason)), End.FAILED)


def _number(text: str, unit: int = 1) -> int | None:
    match = re.match(r"\d+(\.\d+)?", text)
    return int(float(match[0]) * unit) if match else None


def _bytes(text: str) -> int | None:
    """Return the bytes of a size such as `1.5 Gbytes`."""
    match = re.match(r"([\d.]+) ?([KMGT])", text)
    return memory_bytes(f"{match[1]}{match[2]}") if match else None


def _status(state: str, code: str) -> int | None:
    if state == "DONE":
        return 0
    return (int(code) if code.isdigit() and int(code) else 1) if state == "EXIT" else None
