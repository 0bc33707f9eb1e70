"""What a person sees while training: a bar on a terminal, else a line per interval. Only the main process talks."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def say_scores(values: Mapping[str, Any], labels: Mapping[str, str], prefix: str = "") -> str:
    """Return the scores among `values` in words, in the order of their labels."""
    named = ((label, values.get(prefix + name)) for name, label in labels.items())
    return "  ".join(f"{label} {value:.4f}" for label, value in named if value is not None)


class Reporter:
    """Prints the course of a run on stdout, and the bar on stderr."""

    def __init__(
        self, main: bool, epochs: int, steps: int, batch: int, log_every: int, labels: Mapping[str, str]
    ) -> None:
        """`labels` are what people call the scores of an epoch, by name."""
        self.main, self.epochs, self.steps, self.batch, self.log_every = main, epochs, steps, batch, log_every
        self.labels = labels
        self._bar: Any = None
        self._interactive = main and sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Print one line."""
        if self.main:
            print(text, flush=True)

    def start_epoch(self, epoch: int, step: int) -> None:
        """Begin epoch `epoch` (0 is the first) at optimizer step `step`."""
        self._since, self._since_step = time.perf_counter(), step
        if self._interactive:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.steps,
                initial=step,
                desc=f"epoch {epoch + 1}/{self.epochs}",
                unit="step",
                leave=False,
                dynamic_ncols=True,
            )

    def step(self, epoch: int, step: int, loss: float, rate: float) -> None:
        """Report that `step` optimizer steps of the epoch are done."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", lr=f"{rate:.2e}", refresh=False)
            self._bar.update(1)
        elif self.main and (step % self.log_every == 0 or step == self.steps):
            now = time.perf_counter()
            speed = (step - self._since_step) * self.batch / max(now - self._since, 1e-9)
            self._since, self._since_step = now, step
            self.say(
                f"epoch {epoch + 1}/{self.epochs}  step {step}/{self.steps}  loss {loss:.4f}  lr {rate:.2e}"
                f"  {speed:.1f} samples/s"
            )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        """Report a finished epoch."""
        self.close()
        self.say(
            f"epoch {record['epoch']}/{self.epochs}  train loss {record['train_loss']:.4f}"
            f"  val loss {record['val_loss']:.4f}  {say_scores(record, self.labels, 'val_')}"
            f"  {_duration(record['seconds'])}{'  best so far' if best else ''}"
        )
