"""The record of submissions from a folder: read, written, and checked before another submission."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ratc.diagnostics import Diagnostic, Severity
from ratc.scheduler.dialect import Dialect, Task

VERSION = 1


@dataclass(frozen=True, slots=True)
class Submission:
    """One job. ``job`` is None while it is being submitted, and stays so if the answer never came.

    ``lock`` is the digest of its lock, ``time`` an ISO 8601 date and time in UTC, ``host`` the submitting host.
    """

    job: str | None
    lock: str
    scheduler: str
    cluster: str
    host: str
    time: str


def dump(submissions: Sequence[Submission]) -> str:
    """The record's text: JSON, the latest last."""
    return json.dumps({"version": VERSION, "submissions": [asdict(item) for item in submissions]}, indent=2) + "\n"


def load(text: str) -> tuple[Submission, ...] | None:
    """Parse the record's text; None if it is invalid."""
    try:
        content = json.loads(text)
        if content["version"] != VERSION:
            return None
        found = tuple(Submission(**item) for item in content["submissions"])
        for item in found:
            told = asdict(item)
            if not all(isinstance(value, str) or (name == "job" and value is None) for name, value in told.items()):
                return None
        return found
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def active(tasks: Sequence[Task]) -> str | None:
    """The state of a task that has not ended; None if all have, or the scheduler knows of none."""
    return next((task.state for task in tasks if task.status is None), None)


def conflict(former: Submission, state: str | None, lock: str, dialect: Dialect, again: bool) -> Diagnostic | None:
    """Return a finding against submission while ``former`` is in ``state``; with ``again`` a warning. Code: R412.

    ``state`` is None if the job has ended, or if its submission is uncertain.
    """
    when = f"submitted on {former.time} from {former.host}"
    same = former.lock == lock
    if former.job is None and same:
        message = f"this job may be in the queue already: {dialect.name} did not answer an earlier submission"
        helps: tuple[str, ...] = (
            f"look for it with `{dialect.queue()}`; if it is not there, submit it with `--again`",
        )
    elif state is None:
        return None
    elif same:
        message = f"this job was already submitted: job {former.job} is {state}"
        helps = (f"cancel it with `{dialect.cancel(former.job or '')}`, or submit another one with `--again`",)
    else:
        message = f"job {former.job} is {state} and needs the files that this submission would replace"
        helps = (
            f"cancel it with `{dialect.cancel(former.job or '')}`",
            "or use another `experiment_name`, or `-o DIR`, to keep the files of both",
        )
    severity = Severity.WARNING if again else Severity.ERROR
    return Diagnostic("R412", message, None, (when,), () if again else helps, severity)
