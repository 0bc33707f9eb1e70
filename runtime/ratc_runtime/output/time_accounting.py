"""Where a run's time went: training, waiting for data, evaluation, checkpoints; and the table at the end.

Timers read the host's clock only. On a GPU that is honest because the loop reads the loss of each step, which waits for
the device; so a step's time ends where the step ends, and no timer has to wait for the device by itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ratc_runtime.training.open_run import Progress

Item = TypeVar("Item")
#: What time is spent on; `loading` is a part of `training`. `startup` lies before the run is opened: imports, mostly.
KINDS = ("training", "evaluation", "checkpoint", "startup", "setup", "other")


class Account:
    """Adds up what a run costs, in its progress, so that it goes on where a checkpoint is continued.

    Work that is lost between a checkpoint and a crash is not in there; `starts.jsonl` tells when the run began again.
    What `compiling` counts, seconds of this process, is set-up whenever it happens: the clock stands still for it.
    """

    def __init__(
        self,
        progress: Progress,
        now: Callable[[], float] = time.perf_counter,
        compiling: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.progress, self._compiling = progress, compiling
        self._now = lambda: now() - compiling()
        self._compiled = compiling()
        self._since = self._interval_since = self._now()
        self._interval_loading = 0.0
        self._interval_samples = 0
        self._skipped_before = 0

    def get(self, name: str) -> float:
        """Return one sum: seconds of a kind, or a count."""
        return self.progress.account.get(name, 0.0)

    def add(self, name: str, amount: float) -> None:
        """Add to a sum."""
        self.progress.account[name] = self.get(name) + amount

    def lap(self, kind: str) -> None:
        """Count the seconds since the last call as spent on `kind`, one of KINDS."""
        now = self._now()
        seconds, self._since = now - self._since, now
        progress, compiled = self.progress, self._compiling()
        self.add(kind, seconds)
        self.add("setup", compiled - self._compiled)
        progress.total_seconds += seconds + compiled - self._compiled
        self._compiled = compiled
        if kind in ("training", "evaluation"):
            progress.epoch_seconds += seconds
        if kind == "training":
            progress.train_seconds += seconds

    def start_interval(self) -> None:
        """Begin the first interval of an epoch: what lay between epochs belongs to none."""
        self._interval_since, self._interval_loading, self._interval_samples = self._now(), 0.0, 0

    def waiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches, counting how long each was waited for."""
        iterator, now = iter(batches), self._now
        while True:
            began = now()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            waited = now() - began
            self._interval_loading += waited
            self.add("loading", waited)
            yield batch

    def step(self, samples: int, skipped: int) -> None:
        """Count an optimizer step; `skipped` is how many the engine has left out since this process began."""
        self._interval_samples += samples
        if skipped != self._skipped_before:
            self.add("skipped_steps", max(0, skipped - self._skipped_before))
            self._skipped_before = skipped

    def begin_skipping_from(self, skipped: int) -> None:
        """Tell how many skipped steps the engine has counted before; DeepSpeed's checkpoints hold its count."""
        self._skipped_before = skipped

    def interval(self) -> dict[str, float]:
        """Return speed and share of waiting since the last call, as metrics."""
        now = self._now()
        seconds = max(now - self._interval_since, 1e-9)
        metrics = {
            "speed/samples_per_second": self._interval_samples / seconds,
            "speed/loading_share": min(1.0, self._interval_loading / seconds),
        }
        self._interval_since, self._interval_loading, self._interval_samples = now, 0.0, 0
        return metrics

    def record(self, steps: int, samples: int) -> dict[str, Any]:
        """Return the facts for results.json, for `steps` optimizer steps over `samples` samples.

        Seconds by kind, and shares: of `loading` in training, of the others in the whole. Speeds are those of training,
        without evaluation and checkpoints.
        """
        total, training = self.progress.total_seconds, self.progress.train_seconds
        return {
            "seconds": {**{kind: self.get(kind) for kind in KINDS}, "loading": self.get("loading"), "total": total},
            "shares": {
                **{kind: self.get(kind) / total if total else 0.0 for kind in KINDS},
                "loading": self.get("loading") / training if training else 0.0,
            },
            "steps": steps,
            "skipped_steps": int(self.get("skipped_steps")),
            "steps_per_second": steps / training if training else 0.0,
            "samples_per_second": samples / training if training else 0.0,
        }


def process_age() -> float:
    """Return the seconds since this process began, to a hundredth; 0.0 if the system does not say.

    psutil's `create_time` counts from the boot in whole seconds, so it can be off by one.
    """
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[19])  # `starttime` of proc_pid_stat(5), the 22nd field; the name was the second
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def duration(seconds: float) -> str:
    """Return seconds as m:ss, h:mm:ss, or with days before that."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def table(rows: list[tuple[str, str]]) -> str:
    """Return rows of a name and a text, aligned; further lines of a text stand below its first."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  " + text.replace("\n", "\n" + " " * (width + 2)) for name, text in rows)


def rows(account: dict[str, Any], starts: dict[str, Any], damaged: int) -> list[tuple[str, str]]:
    """Return the rows of the final table about time, speed, steps and data, from what results.json holds."""
    seconds, shares = account["seconds"], account["shares"]
    parts = ", ".join(
        f"{kind} {duration(seconds[kind])} ({shares[kind]:.0%})"
        for kind in KINDS
        if seconds[kind] >= 0.5 and kind != "startup"
    )
    begun = (
        "1 start" if starts["number"] == 1 else f"{starts['number']} starts, continued {starts['number'] - 1} time(s)"
    )
    startup = f"{duration(seconds['startup'])} ({shares['startup']:.0%})"
    return [
        ("start-up", f"{startup}: from the start of the process, until it opens the data"),
        ("time", f"{duration(seconds['total'])}: {parts}" if parts else duration(seconds["total"])),
        (
            "speed",
            f"{account['samples_per_second']:.1f} samples/s, {account['steps_per_second']:.2f} steps/s;"
            f" {shares['loading']:.1%} of training waited for data",
        ),
        ("steps", f"{account['steps']} optimizer steps, {account['skipped_steps']} of them skipped; {begun}"),
        ("samples", f"{damaged} left out as damaged or missing"),
    ]
