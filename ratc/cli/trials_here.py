"""Runs a study's trials on this machine, each by its own script, several at a time where there is room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ratc.cli import trials
from ratc.cli.trials import Compiled
from ratc.tuning import outcome
from ratc.tuning.points import Study

#: Seconds between two looks at running trials.
_PAUSE = 0.2


@dataclass(slots=True)
class Runner:
    """Runs trials, several at a time where the spec says so and the machine has the GPUs."""

    study: Study
    trials: Sequence[Compiled]
    _stopping: bool = False
    _waiting: list[Compiled] = field(default_factory=list)
    #: By slot: the trial, its process, and from where on its log is of this start.
    _running: dict[int, tuple[Compiled, subprocess.Popen[bytes], int]] = field(default_factory=dict)

    def run(self) -> int:
        """Run what is not finished; 130 where it was interrupted, after the trials have saved."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self._waiting = [trial for trial in self.trials if not trials.is_finished(trial)]
        done = len(self.trials) - len(self._waiting)
        if done:
            print(f"{done} of {len(self.trials)} trials are finished", file=sys.stderr)
        try:
            while (self._waiting and not self._stopping) or self._running:
                for slot in self._free():
                    ready = next((trial for trial in self._waiting if not trials.is_held(trial)), None)
                    if ready is None or self._stopping:
                        break
                    self._waiting.remove(ready)
                    # One that outlived a study that was killed may have ended by now.
                    if not trials.is_finished(ready):
                        self._start(slot, ready)
                time.sleep(_PAUSE)
                self._look()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return 130 if self._stopping else 0

    def _free(self) -> list[int]:
        return [slot for slot in range(self._slots()) if slot not in self._running]

    def _slots(self) -> int:
        """How many run at once: with GPUs, as many as the machine has room for."""
        wanted, gpus = self.study.max_parallel or 1, self.trials[0].gpus
        return wanted if not gpus else max(1, min(wanted, len(_visible()) // gpus))

    def _start(self, slot: int, trial: Compiled) -> None:
        environment = {"RATC_PYTHON": sys.executable, **os.environ}
        # They lie over the lock, and every trial has its own.
        environment.pop("RAT_OUTPUT_DIR", None)
        if trial.gpus and self._slots() > 1:
            mine = _visible()[slot * trial.gpus : (slot + 1) * trial.gpus]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        print(f"{trial.point.name}  {trial.point.text}", file=sys.stderr, flush=True)
        # Behind what an earlier start wrote, which may write still.
        with open(trials.log_of(trial), "ab") as log:
            log.write(f"--- {time.strftime('%F %T')}\n".encode())
            log.flush()
            begun = log.tell()
            # In a group of its own: Ctrl-C reaches it through this process alone, once.
            process = subprocess.Popen(
                [os.path.join(os.path.abspath(trial.folder), "run.sh")],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running[slot] = trial, process, begun

    def _look(self) -> None:
        for slot, (trial, process, begun) in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[slot]
            why = trials.why(trial, begun)
            if status and why == "R517":
                # It was begun by a study that was killed, and goes on: its end is waited for.
                print(f"{trial.point.name}  runs already", file=sys.stderr, flush=True)
                self._waiting.append(trial)
                continue
            found = trials.result(trial, self.study)
            said = f"{self.study.metric} {found.metric:.4f}" if found.metric is not None else ""
            if status:
                said = f"failed with status {status} {why}; its log: {os.path.relpath(trials.log_of(trial))}"
            elif found.status != outcome.FINISHED:
                said = "stopped, and saved"
            print(f"{trial.point.name}  {said}", file=sys.stderr, flush=True)

    def _stop(self, number: int, frame: object) -> None:
        """Ask every trial to save and end; a second time, end them."""
        again, self._stopping = self._stopping, True
        for _, process, _ in self._running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL if again else signal.SIGINT)
        if not again:
            print("stopping: the running trials save; the same command continues", file=sys.stderr, flush=True)


def _visible() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    from ratc.probe.local import machine

    return [str(number) for number in range(machine(os.environ).gpus)]
