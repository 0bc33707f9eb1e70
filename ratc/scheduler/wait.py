"""Waits for the end of a job by polling its scheduler."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ratc.console import say
from ratc.diagnostics import Diagnostic
from ratc.scheduler.client import Scheduler, ask
from ratc.scheduler.dialect import Task

#: Seconds between two questions: from the first to the second, half as long again each time. Slurm forgets a job after
#: MinJobAge, 300 s by default, and LSF after CLEAN_PERIOD, an hour.
_PAUSES = (1.0, 30.0)
#: Questions in a row that may stay without an answer: a controller that restarts is not the end of a job.
_PATIENCE = 20


def wait(scheduler: Scheduler, job: str, timeout: float) -> tuple[int | None, tuple[Diagnostic, ...]]:
    """Wait for a job; return its exit status, the highest of an array's tasks, or None if it is not known.

    ``timeout`` is the limit of each of the scheduler's commands, in seconds.

    Raises KeyboardInterrupt, which leaves the job alone. Code: R416.
    """
    ended: dict[str, Task] = {}
    shown, unanswered, pause = "", 0, _PAUSES[0]
    while True:
        answer = ask(scheduler.dialect.state(job), timeout)
        tasks = scheduler.dialect.tasks(answer)
        if tasks is None:
            unanswered += 1
            if unanswered >= _PATIENCE:
                return None, (_lost(job, f"{scheduler.dialect.name} no longer answers", answer.words),)
        elif tasks:
            unanswered = 0
            # The earlier status of a requeued task does not count; a forgotten task keeps its last one.
            ended = {id: task for id, task in ended.items() if id not in {task.id for task in tasks}}
            ended |= {task.id: task for task in tasks if task.status is not None}
            if all(task.status is not None for task in tasks):
                return max(task.status or 0 for task in ended.values()), ()
        elif ended:
            return max(task.status or 0 for task in ended.values()), ()
        else:
            return None, (_lost(job, f"{scheduler.dialect.name} no longer knows it", answer.words),)
        said = _states(tasks or ())
        if said and said != shown:
            say(f"job {job}: {said}")
            shown = said
        time.sleep(pause)
        pause = min(pause * 1.5, _PAUSES[1])


def _states(tasks: Iterable[Task]) -> str:
    counts: dict[str, int] = {}
    for task in tasks:
        counts[task.state] = counts.get(task.state, 0) + 1
    return ", ".join(state if len(counts) == 1 else f"{count} {state}" for state, count in sorted(counts.items()))


def _lost(job: str, why: str, words: tuple[str, ...]) -> Diagnostic:
    helps = ("look at the job's log in the spec's folder, and at `results.json` in its output folder",)
    return Diagnostic("R416", f"it is not known how job {job} ended: {why}", notes=words, helps=helps)
