"""The run's time by kind (training, waiting for data, evaluation, checkpoints), and the table at the end.

Timers read only the host's clock. On a GPU that is correct because the loop reads the loss of each step, which waits
for the device, so no timer has to wait for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ratc_runtime.output.sizes import counted

if TYPE_CHECKING:
    from ratc_runtime.training.run import Progress

Item = TypeVar("Item")
#: Kinds of time; `loading` is a part of `training`. `startup` is the time before the run is opened, mostly imports.
KINDS = ("training", "evaluation", "checkpoint", "startup", "setup", "other")


class TimeAccounting:
    """Adds up the run's time in its progress, so that a resumed run continues the sums.

    Work lost between a checkpoint and a crash is not included; `starts.jsonl` shows when the run restarted. `compiling`
    gives this process's seconds of compilation. They count as set-up at any time, and the clock stops for them.
    """

    def __init__(
        self,
        progress: Progress,
        now: Callable[[], float] = time.perf_counter,
        compiling: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.progress, self._compiling = progress, compiling
        self._now: Callable[[], float] = lambda: now() - compiling()
        self._compiled = compiling()
        self._since = self._interval_since = self._now()
        self._interval_loading = 0.0
        self._interval_samples = 0
        self._skipped_before = 0

    def get(self, name: str) -> float:
        """Return one sum: seconds of a kind, or a count."""
        return self.progress.account.get(name, 0.0)

    def add(self, name: str, amount: float) -> None:
        """Add an amount to a sum: seconds of a kind, or a count."""
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
        """Start the first interval of an epoch. The time between epochs belongs to none."""
        self._interval_since, self._interval_loading, self._interval_samples = self._now(), 0.0, 0

    def waiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches, and add up the time spent waiting for them."""
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
        """Count an optimizer step. `skipped` is the engine's total of skipped steps since this process began."""
        self._interval_samples += samples
        if skipped != self._skipped_before:
            self.add("skipped_steps", max(0, skipped - self._skipped_before))
            self._skipped_before = skipped

    def begin_skipping_from(self, skipped: int) -> None:
        """Set the engine's count of skipped steps at the start. DeepSpeed's checkpoints hold its count."""
        self._skipped_before = skipped

    def interval(self) -> dict[str, float]:
        """Return samples per second and the share of waiting since the last call, as metrics."""
        now = self._now()
        seconds = max(now - self._interval_since, 1e-9)
        metrics = {
            "speed/samples_per_second": self._interval_samples / seconds,
            "speed/loading_share": min(1.0, self._interval_loading / seconds),
        }
        self._interval_since, self._interval_loading, self._interval_samples = now, 0.0, 0
        return metrics

    def record(self, steps: int, samples: int) -> dict[str, Any]:
        """Return the entry for results.json, for `steps` optimizer steps over `samples` samples.

        It has seconds by kind, and shares: of `loading` in training, of the others in the whole. Speeds are those of
        training, without evaluation and checkpoints.
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
    """Return the seconds since this process began, to a hundredth; 0.0 if the system does not provide it.

    psutil's `create_time` counts whole seconds from boot, so it can be off by one.
    """
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[19])  # `starttime` of proc_pid_stat(5), the 22nd field; the name was the second
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def duration(seconds: float) -> str:
    """Return seconds as text: m:ss, h:mm:ss, or with days in front."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def table(rows: list[tuple[str, str]]) -> str:
    """Return rows of a name and a text, aligned. Further lines of a text are indented below its first."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  " + text.replace("\n", "\n" + " " * (width + 2)) for name, text in rows)


def rows(account: dict[str, Any], starts: dict[str, Any], damaged: int) -> list[tuple[str, str]]:
    """Return the rows of the final table about time, speed, steps and data, from the entries of results.json."""
    seconds, shares = account["seconds"], account["shares"]
    parts = ", ".join(
        f"{kind} {duration(seconds[kind])} ({shares[kind]:.0%})"
        for kind in KINDS
        if seconds[kind] >= 0.5 and kind != "startup"
    )
    begun = (
        "1 start"
        if starts["number"] == 1
        else f"{starts['number']} starts, continued {counted(starts['number'] - 1, 'time')}"
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
