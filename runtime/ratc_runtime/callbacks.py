"""Code of the user's that the loop calls: at the start, after a step, after an epoch, and with the results.

A spec names them (`training.callbacks: ["package.module:callable"]`, called without arguments), `UnifiedTrainer` takes
objects. Every rank calls all of them, at the same points: a callback that talks or writes asks `run.world.main` first.
What one raises ends the run as an error of any other user's code does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ratc_runtime.training.open_run import Run


class Callback:
    """Does nothing; override what is wanted."""

    def start(self, run: Run) -> None:
        """The run is open: model, data and progress are there, no step of this start is made yet."""

    def step(self, run: Run, loss: float) -> None:
        """An optimizer step was made; `loss` is its mean over all micro-batches and ranks."""

    def epoch(self, run: Run, record: Mapping[str, Any]) -> None:
        """An epoch was trained, evaluated and saved; `record` is what results.json will say of it."""

    def finish(self, run: Run, results: Mapping[str, Any]) -> None:
        """The run is over; `results` are those of results.json, on every rank."""


#: What the loop calls.
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
