"""The user's callbacks: at the start, after a step, after an epoch, and with the results.

A spec names them (`training.callbacks: ["package.module:callable"]`, or `{"package.module:callable": {…}}` with
arguments), `UnifiedTrainer` takes objects. Every rank calls all of them, at the same points: a callback that prints or
writes checks `run.world.main` first. An exception in a callback ends the run like one in any other code of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ratc_runtime.training.run import Run


class Callback:
    """A callback that does nothing. Override the methods that you need."""

    def start(self, run: Run) -> None:
        """Called when the run is open, with model, data and progress, before the first step of this start."""

    def step(self, run: Run, loss: float) -> None:
        """Called after an optimizer step. `loss` is its mean over all micro-batches and ranks."""

    def epoch(self, run: Run, record: Mapping[str, Any]) -> None:
        """Called after an epoch was trained, evaluated and saved. `record` is its entry in results.json."""

    def finish(self, run: Run, results: Mapping[str, Any]) -> None:
        """Called at the end of the run. `results` are those of results.json, on every rank."""


#: The methods that the loop calls.
HOOKS = ("start", "step", "epoch", "finish")


class Callbacks(Callback):
    """Several callbacks, called in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def start(self, run: Run) -> None:
        for callback in self.callbacks:
            callback.start(run)

    def step(self, run: Run, loss: float) -> None:
        for callback in self.callbacks:
            callback.step(run, loss)

    def epoch(self, run: Run, record: Mapping[str, Any]) -> None:
        for callback in self.callbacks:
            callback.epoch(run, record)

    def finish(self, run: Run, results: Mapping[str, Any]) -> None:
        for callback in self.callbacks:
            callback.finish(run, results)
