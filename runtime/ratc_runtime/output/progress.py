"""Console output of training: a bar on a terminal, few lines in a log. Only the main process prints."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from ratc_runtime.errors import visible
from ratc_runtime.output.time_accounting import duration

#: Lines that are printed without delay at the start, as early feedback.
FIRST_LINES = 5
#: Seconds between lines after those.
QUIET = 10.0
#: Seconds between the lines of epochs, which may be shorter.
BETWEEN_EPOCHS = 1.0
_BEST = "best so far"


class Eta:
    """Estimates the end of the run, from this process's steps and the time between its epochs."""

    def __init__(self, epochs: int, steps: int, now: Callable[[], float] = time.perf_counter) -> None:
        self.epochs, self.steps, self._now = epochs, steps, now
        self._last = now()
        self._ended: float | None = None
        self._first: float | None = None  # a process's first step warms up; it counts until there is a second
        self._training, self._number = 0.0, 0
        self._between, self._gaps = 0.0, 0

    def start_epoch(self) -> None:
        """Start an epoch. The time since the last one's end counts as time between epochs."""
        now = self._now()
        if self._ended is not None:
            self._between += now - self._ended
            self._gaps += 1
        self._last, self._ended = now, None

    def step(self, step: int) -> None:
        """Record that `step` steps of the epoch are done."""
        now = self._now()
        took, self._last = now - self._last, now
        if self._first is None:
            self._first = took
        else:
            self._training += took
            self._number += 1
        if step >= self.steps:
            self._ended = now

    def seconds(self, epoch: int, step: int) -> float | None:
        """Return the remaining seconds after `step` steps of epoch `epoch` (from 0); None before the first step."""
        if self._first is None:
            return None
        each = self._training / self._number if self._number else self._first
        epochs = self.epochs - epoch - 1
        between = self._between / self._gaps if self._gaps else 0.0
        return (self.steps - step + epochs * self.steps) * each + epochs * between


def is_terminal(stream: TextIO) -> bool:
    """Return whether the stream can show a bar."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def takes_colour(stream: TextIO) -> bool:
    """Return whether to use colours: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def say_scores(values: Mapping[str, Any], labels: Mapping[str, str], prefix: str = "") -> str:
    """Return the scores in `values` as text, in the order of their labels. None is left out; NaN is `n/a`."""
    named = ((label, values.get(prefix + name)) for name, label in labels.items())
    return "  ".join(f"{label} {say_score(value)}" for label, value in named if value is not None)


def say_score(value: float) -> str:
    """Return one score as text."""
    return "n/a" if math.isnan(value) else f"{value:.4f}"


class Reporter:
    """Prints the progress of a run: lines on stdout, and a bar on stderr if that is a terminal.

    Lines of steps are left out if the bar shows the same on the same screen.
    """

    def __init__(
        self,
        main: bool,
        epochs: int,
        steps: int,
        batch: int,
        log_every: int,
        labels: Mapping[str, str],
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`labels` are the display names of an epoch's scores, by name."""
        self.main, self.epochs, self.steps, self.batch, self.log_every = main, epochs, steps, batch, log_every
        self.labels = labels
        self._bar: Any = None
        self._bars = main and is_terminal(sys.stderr)
        self._lines = main and not (self._bars and sys.stdout.isatty())
        self._colours = main and takes_colour(sys.stdout)
        self._now, self._eta = now, Eta(epochs, steps, now)
        self._printed, self._printed_at = 0, float("-inf")
        self._epochs_told, self._epoch_told_at = 0, float("-inf")
        self._best_untold: int | None = None
        self._is_short = False  # the epoch before

    def say(self, text: str) -> None:
        """Print one or several lines."""
        if not self.main:
            return
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        # A name in the spec must not end a run on a terminal that cannot show it.
        text = visible(text).encode(encoding, "replace").decode(encoding)
        if self._colours:
            text = text.replace(_BEST, f"\033[32m{_BEST}\033[0m")
        if self._bar is not None:
            self._bar.clear()
        print(text, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def start_epoch(self, epoch: int, step: int) -> None:
        """Start epoch `epoch` (the first is 0) at optimizer step `step`."""
        self._began = self._since = self._now()
        self._since_step, self._first = step, not self._is_short
        self._eta.start_epoch()
        if self._bars:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.steps,
                initial=step,
                desc=f"epoch {epoch + 1}/{self.epochs}",
                unit="step",
                leave=False,
                dynamic_ncols=True,
                file=sys.stderr,
                bar_format="{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{postfix}",
            )

    def step(self, epoch: int, step: int, loss: float, rate: float) -> None:
        """Report that `step` optimizer steps of the epoch are done."""
        if not self.main:
            return
        self._eta.step(step)
        if self._bar is not None and self._bar.update(1):
            # Only if it was just drawn, a few times a second. The next redraw shows this text.
            text = self._state(epoch, step, loss, rate, self._now()).strip()
            self._bar.set_postfix_str(text, refresh=False)
        if not self._lines:
            return
        due = step % self.log_every == 0 or step == self.steps
        if due or self._first:
            now = self._now()
            if self._first or self._printed < FIRST_LINES or now - self._printed_at >= QUIET:
                self._first = False
                self._printed, self._printed_at = self._printed + 1, now
                text = self._state(epoch, step, loss, rate, now)
                self._since, self._since_step = now, step
                self.say(f"epoch {epoch + 1}/{self.epochs}  step {step}/{self.steps}{text}")

    def _state(self, epoch: int, step: int, loss: float, rate: float, now: float) -> str:
        speed = (step - self._since_step) * self.batch / max(now - self._since, 1e-9)
        return f"  loss {loss:.4f}  lr {rate:.2e}  {speed:.1f} samples/s{self._left(epoch, step)}"

    def _left(self, epoch: int, step: int) -> str:
        seconds = self._eta.seconds(epoch, step)
        return "" if seconds is None else f"  eta {duration(seconds)}"

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        """Report a finished epoch. After the first lines, short epochs are reported about once a second, and the last
        always.
        """
        self.close()
        number, now = record["epoch"], self._now()
        self._is_short = now - self._began < BETWEEN_EPOCHS
        if best:
            self._best_untold = number
        if self._epochs_told >= FIRST_LINES and now - self._epoch_told_at < BETWEEN_EPOCHS and number < self.epochs:
            return
        self._epochs_told, self._epoch_told_at = self._epochs_told + 1, now
        mark = _BEST
        left = self._left(record["epoch"] - 1, self.steps) if record["epoch"] < self.epochs else ""
        if self._best_untold not in (None, number):
            mark = f"{_BEST}: epoch {self._best_untold}"
        mark, self._best_untold = f"  {mark}" if self._best_untold else "", None
        self.say(
            f"epoch {record['epoch']}/{self.epochs}  train loss {record['train_loss']:.4f}"
            f"  val loss {record['val_loss']:.4f}  {say_scores(record, self.labels, 'val_')}"
            f"  {duration(record['seconds'])}{left}{mark}"
        )
