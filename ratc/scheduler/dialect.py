"""The interface that Slurm's and LSF's dialects share: a scheduler's commands and the readers of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command. ``status`` is None if it did not end in time, or could not be started."""

    command: str
    status: int | None
    out: str = ""
    err: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """The first 8 non-empty lines of its standard error, or of its output if there are none."""
        lines = (self.err if self.err.strip() else self.out).splitlines()
        return tuple(line.strip() for line in lines if line.strip())[:8]


@dataclass(frozen=True, slots=True)
class Task:
    """A job, or one task of an array: the scheduler's word for its state; its exit status once it has ended."""

    id: str
    state: str
    status: int | None = None


class End(Enum):
    """How a job stands, in words that both schedulers' states come down to."""

    WAITING = "waits in the queue"
    RUNNING = "is running"
    WELL = "ended well"
    FAILED = "failed"
    TIME = "ran out of time"
    MEMORY = "ran out of host memory"
    NODE = "lost a node"
    CANCELLED = "was cancelled"
    PREEMPTED = "was preempted"
    UNKNOWN = "is in a state that ratc does not know"


@dataclass(frozen=True, slots=True)
class AccountingRecord:
    """The scheduler's record of one start of a job, or of one task of an array.

    ``task`` is its number, ``state`` the scheduler's own word and ``reason`` the words behind it, ``hosts`` the nodes
    as the scheduler writes them. ``ran_s`` and ``limit_s`` are seconds, ``memory`` and ``asked_memory`` bytes, used and
    requested; ``status`` is the exit status as a shell has it: None if not known. ``place`` is the folder that it was
    submitted from, ``log`` the file of its output: empty if not known.
    """

    task: str
    state: str
    end: End
    reason: str = ""
    status: int | None = None
    hosts: str = ""
    ran_s: int | None = None
    limit_s: int | None = None
    memory: int | None = None
    asked_memory: int | None = None
    place: str = ""
    log: str = ""


class Dialect(Protocol):
    """One scheduler's commands, each a tuple of words, and the readers of their output."""

    @property
    def name(self) -> str:
        """The scheduler's name for people."""

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that must be on PATH; the first one submits."""

    @property
    def script(self) -> str:
        """The name of the script that its target emits."""

    @property
    def inside(self) -> str:
        """The variable that holds the job's number within a job."""

    @property
    def cluster_command(self) -> tuple[str, ...]:
        """The command that prints the cluster's name."""

    def cluster(self, answer: Answer) -> str | None:
        """The cluster's name in the answer to `cluster_command`; None if nobody answered."""

    def submit(self, script: str, after: Sequence[str]) -> tuple[tuple[str, ...], bool]:
        """The command that submits a script, and whether it reads the script from standard input."""

    def check(self, script: str, after: Sequence[str]) -> tuple[str, ...] | None:
        """The command that checks whether the scheduler would accept a script; None if it has no such command."""

    def job(self, answer: Answer) -> str | None:
        """The job's number in the answer to `submit`."""

    def may_have_submitted(self, answer: Answer) -> bool:
        """Whether a failed `submit` may have submitted the job."""

    def state(self, job: str) -> tuple[str, ...]:
        """The command that prints a job's state."""

    def tasks(self, answer: Answer) -> tuple[Task, ...] | None:
        """The job's tasks in the answer to `state`: none if the scheduler has forgotten it; None for no answer."""

    def record_commands(self, job: str) -> tuple[tuple[str, ...], ...]:
        """The commands that print the records of a job's starts; each is tried if the one before prints none."""

    def records(self, answer: Answer) -> tuple[AccountingRecord, ...]:
        """The records in the answer to one of `record_commands`, the latest start of a task last; empty if none."""

    def queue(self) -> str:
        """The command, as one line for people, that lists their own jobs."""

    def cancel(self, job: str) -> str:
        """The command, as one line for people, that cancels a job."""

    def log(self, name: str, job: str, array: bool) -> str:
        """The file that the emitted script writes its log to; `*` stands for the tasks of an array."""

    def overridden(self, script: str, environment: Sequence[str]) -> tuple[str, ...]:
        """The variables of an environment that would override a script's request."""
