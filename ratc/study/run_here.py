"""Runs a study's trials on this machine, each by its own script, several at a time if there is room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ratc.study import trials
from ratc.study.budget import Budget
from ratc.study.progress import Live
from ratc.study.trials import Compiled
from ratc.tuning import outcome
from ratc.tuning.points import Study

#: Seconds between two looks at running trials.
_PAUSE = 0.2


@dataclass(slots=True)
class Runner:
    """Runs trials, several at a time if the spec says so and the machine has the GPUs."""

    study: Study
    trials: Sequence[Compiled]
    budget: Budget
    live: Live = field(init=False)
    _stopping: bool = False
    _spent: bool = False
    _waiting: list[Compiled] = field(default_factory=list)
    #: By slot: the trial, its process, and from where on its log is of this start.
    _running: dict[int, tuple[Compiled, subprocess.Popen[bytes], int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.live = Live(lambda: outcome.table(self.study, [trials.result(one, self.study) for one in self.trials]))

    def run(self) -> int:
        """Run the unfinished trials; returns the status, 130 if interrupted, after the trials have saved."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self._waiting = [trial for trial in self.trials if not trial.files.is_finished()]
        done = len(self.trials) - len(self._waiting)
        if done:
            self.live.say(f"{done} of {len(self.trials)} trials are finished")
        try:
            while (self._waiting and not self._stopping) or self._running:
                for slot in self._free():
                    ready = next((trial for trial in self._waiting if not trial.files.is_held()), None)
                    if ready is None or self._stopping:
                        break
                    self._waiting.remove(ready)
                    # One that outlived a study that was killed may have ended by now.
                    if not ready.files.is_finished():
                        self._start(slot, ready)
                time.sleep(_PAUSE)
                self._look()
                if self.budget.is_spent() and not self._spent and not self._stopping:
                    self._spent = True
                    self._stop_all("the budget is spent")
                self.live.show()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.live.end()
            self.budget.keep()
        return 130 if self._stopping and not self._spent else 0

    def _free(self) -> list[int]:
        return [slot for slot in range(self._slots()) if slot not in self._running]

    def _slots(self) -> int:
        """Return the number of trials to run at once: with GPUs, as many as the machine has room for."""
        wanted, gpus = self.study.max_parallel or 1, self.trials[0].gpus
        return wanted if not gpus else max(1, min(wanted, len(_visible()) // gpus))

    def _start(self, slot: int, trial: Compiled) -> None:
        variables: dict[str, str] = {}
        if trial.gpus and self._slots() > 1:
            mine = _visible()[slot * trial.gpus : (slot + 1) * trial.gpus]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        self.live.say(f"{trial.point.name}  {trial.point.text}")
        self._running[slot] = trial, *trial.files.start(sys.executable, variables)

    def _look(self) -> None:
        for slot, (trial, process, begun) in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[slot]
            why = trial.files.last_code(begun)
            if status and why == "R517":
                # It was begun by a study that was killed, and goes on: its end is waited for.
                self.live.say(f"{trial.point.name}  runs already")
                self._waiting.append(trial)
                continue
            found = trials.result(trial, self.study)
            said = f"{self.study.metric} {found.metric:.4f}" if found.metric is not None else ""
            if status:
                said = f"failed with status {status} {why}; its log: {os.path.relpath(trial.files.log)}"
            elif found.status != outcome.FINISHED and trial.files.own_results().get("status") != "stopped":
                said = f"ended with status 0 but wrote no results; its log: {os.path.relpath(trial.files.log)}"
            elif found.status != outcome.FINISHED:
                said = "stopped, and saved"
            self.live.say(f"{trial.point.name}  {said}")

    def _stop(self, number: int, frame: object) -> None:
        """Ask every trial to save and end; at the second signal, end them."""
        self._stop_all(signal.Signals(number).name)

    def _stop_all(self, reason: str) -> None:
        again, self._stopping = self._stopping, True
        for _, process, _ in self._running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL if again else signal.SIGINT)
        if not again:
            self.live.say(
                f"stopping ({reason}): running trials save a checkpoint; run the same command again to continue"
            )


def _visible() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    from ratc.probe.local import machine

    return [str(number) for number in range(machine(os.environ).gpus)]
