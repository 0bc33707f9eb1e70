"""LSF's side of a submission. Rules: IBM Spectrum LSF 10.1, the pages of bsub, bjobs and lsid."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ratc.scheduler.dialect import Answer, Task


class Lsf:
    """bsub, which reads a script's directives from standard input only, bjobs and lsid."""

    name = "LSF"
    programs = ("bsub", "bjobs", "lsid")
    script = "job.lsf"
    inside = "LSB_JOBID"
    hello = ("lsid",)

    def cluster(self, answer: Answer) -> str | None:
        """`My cluster name is NAME`; `lsid` fails if no management host answers."""
        match = re.search(r"^My cluster name is (\S+)", answer.out, re.MULTILINE)
        return match[1] if answer.status == 0 and match else None

    def submit(self, script: str, after: Sequence[str]) -> tuple[tuple[str, ...], bool]:
        """Options of the command line come on top of the script's."""
        depends = ("-w", " && ".join(f"done({job})" for job in after)) if after else ()
        return ("bsub", *depends), True

    def check(self, script: str, after: Sequence[str]) -> None:
        """bsub can only submit; BSUB_CHK_RESREQ looks at a `select` section, and at nothing else."""
        return

    def job(self, answer: Answer) -> str | None:
        """`Job <123> is submitted to queue <normal>.`"""
        match = re.search(r"^Job <([0-9]+)> is submitted to ", answer.out, re.MULTILINE)
        return match[1] if match else None

    def unsure(self, answer: Answer) -> bool:
        """bsub keeps trying while LSF is down."""
        return answer.status is None

    def state(self, job: str) -> tuple[str, ...]:
        """A line for each element of an array."""
        return ("bjobs", "-noheader", "-o", "jobid jobindex stat exit_code", job)

    def tasks(self, answer: Answer) -> tuple[Task, ...] | None:
        """DONE and EXIT are the ends; an exit code that is not there is `-`."""
        found = []
        for line in answer.out.splitlines():
            words = line.split()
            if len(words) == 4 and words[0].isdigit():
                found.append(Task(f"{words[0]}[{words[1]}]", words[2], _status(words[2], words[3])))
        if found:
            return tuple(found)
        return () if "is not found" in answer.err + answer.out else None

    def queue(self) -> str:
        """Their own jobs."""
        return "bjobs"

    def cancel(self, job: str) -> str:
        """All elements of an array."""
        return f"bkill {job}"

    def log(self, name: str, job: str, array: bool) -> str:
        """`%J`, or `%J.%I`."""
        return f"{name}-{job}{'.*' if array else ''}.out"

    def overridden(self, script: str, environment: Sequence[str]) -> tuple[str, ...]:
        """LSB_DEFAULTQUEUE and its like are only defaults: they override nothing."""
        return ()


def _status(state: str, code: str) -> int | None:
    if state == "DONE":
        return 0
    return (int(code) if code.isdigit() and int(code) else 1) if state == "EXIT" else None
