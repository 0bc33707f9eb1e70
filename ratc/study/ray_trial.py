"""One trial as Ray sees it: starts the trial's script on the node that Ray chose, and reports every epoch.

A trial's results lie in its own folder. If a study was stopped or killed, its restarted trial first reports these and
then continues from its checkpoint. Ray's own checkpoints are empty.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

from ray import tune

from ratc.study.trial_files import TrialFiles
from ratc.tuning.outcome import judged

#: Seconds between two polls; for a run to save and end; and until a run that the study did not stop counts as failed.
_PAUSE, _PATIENCE, _STOPPED = 0.2, 60.0, 120.0
#: The score of a metric that is not a number.
WORST = -1e30


class TrialRun(tune.Trainable):  # type: ignore[misc]  # Ray is read without its types
    """``config`` has the trial's ``folder`` and ``output``, and the ``metric`` with ``larger_is_better``."""

    def setup(self, config: dict[str, Any]) -> None:
        """Set up a trial."""
        self._files = TrialFiles(config["folder"], config["output"])
        self._metric, self._larger = config["metric"], config["larger_is_better"]
        self._told, self._begun = 0, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped_at: float | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Set up the next trial in the same process, after the end of this one's."""
        self._end()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next epoch's result. Raises RuntimeError if the run has failed."""
        while True:
            results = self._files.own_results()
            finished = results.get("status") == "finished"
            if self._told < len(results.get("epochs", ())):
                self._told += 1
                return self._result(results, finished and self._told == len(results["epochs"]))
            if finished or self._files.ended_early():
                return self._result(results, True)
            if self._stopped_at is not None:
                return self._wait_for_the_study(results)
            self._look()

    def _look(self) -> None:
        """Start the script, or check its state. Raises RuntimeError if it has failed."""
        if self._process is None:
            # It may have been begun by a study that was killed, and go on.
            if not self._files.is_held():
                self._process, self._begun = self._files.start(sys.executable, {}, die_with_parent=True)
            time.sleep(_PAUSE)
            return
        status = self._process.poll()
        if status is None:
            time.sleep(_PAUSE)
            return
        self._process = None
        why = self._files.why(self._begun)
        if status and why != "R517":
            raise RuntimeError(f"failed with status {status} {why}")
        if not status and not self._files.is_finished():
            self._stopped_at = time.monotonic()

    def _wait_for_the_study(self, results: dict[str, Any]) -> dict[str, Any]:
        """Wait after the run has saved on request: the study will end soon. Raises RuntimeError if it does not."""
        assert self._stopped_at is not None
        if time.monotonic() - self._stopped_at > _STOPPED:
            raise RuntimeError("stopped by another process or person")
        time.sleep(1.0)
        return self._result(results, False)

    def _result(self, results: dict[str, Any], done: bool) -> dict[str, Any]:
        """Return the best score so far, larger is better. It also ranks the trial at the end."""
        known = {"epochs": results.get("epochs", [])[: self._told]}
        metric, _ = judged(known, self._metric, self._larger)
        score = WORST if metric is None else metric if self._larger else -metric
        return {"epoch": max(1, self._told), "score": score, "done": done}

    def cleanup(self) -> None:
        """End the run if it still runs: the study does not need it any more."""
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        if self._files.is_finished():  # it closes its books
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
                return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Do nothing: the run keeps its own checkpoints."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Do nothing."""
