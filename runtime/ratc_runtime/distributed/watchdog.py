"""Ends a run that hangs, and names the process that it hangs in (R525).

A collective that one process never enters keeps all others waiting: for days, if nobody looks. So a thread in each
process counts progress (`mark`: a batch, a collective). After the lock's `parallel.timeout_seconds` without progress it
reports the rank that hangs, with its stack, and ends every process with status 1. It needs no collective and no process
group: the ranks see each other by `heartbeat.Heartbeats`.

The cost is an addition per batch and per collective. If the thread itself cannot run, because code holds the
interpreter's lock or a file system is dead, faulthandler's timer needs neither: it prints every stack and ends the
process a little later.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed import phases, stacks
from ratc_runtime.distributed.heartbeat import Beat, Heartbeats, kill, process_start_time, start_name
from ratc_runtime.errors import RuntimeFinding, warn

VARIABLE = "RATC_TIMEOUT_SECONDS"
#: Seconds by which the process group's own timeout is longer, so that the watchdog, which reports more, comes first.
GROUP_MARGIN = 60.0
#: Seconds for a process to notice by itself that another one is gone, before the watchdog ends it. Chosen, not
#: measured.
GRACE = 15.0
#: Least timeout, in seconds, for opening the data, building the model and the first step, which includes torch.compile.
#: Chosen, not measured.
FIRST = 900.0
#: A rank answers if its heartbeat changed within this number of checks: on a busy machine one check may be too early.
LOOKS = 5
#: Processes that hang and are shown with their stack, at most.
SHOWN = 4

_marks = 0
_current: Watchdog | None = None


def current() -> Watchdog | None:
    """Return the last watchdog of this process, also after its end."""
    return _current


def begin(lock: Lock, output_dir: Path, rank: int) -> Watchdog | None:
    """Start this process's watchdog; return None if the run has no timeout."""
    global _current
    seconds, size, here = limit(lock, os.environ), lock.parallel.world_size, lock.parallel.processes_per_node
    first = rank // here * here
    _current = None if seconds is None else Watchdog(seconds, output_dir, rank, size, range(first, first + here))
    return None if _current is None else _current.start()


def mark() -> None:
    """Record progress. A thread that calls this regularly does not hang."""
    global _marks
    _marks += 1


def limit(lock: Lock, environment: Mapping[str, str]) -> float | None:
    """Return the seconds without progress after which a run is ended; None for no limit.

    RATC_TIMEOUT_SECONDS overrides the lock's value, and its value 0 means no limit.
    """
    text = environment.get(VARIABLE)
    if text:
        with contextlib.suppress(ValueError):
            seconds = float(text)
            if 0 <= seconds < float("inf"):
                return seconds or None
        warn(f"{VARIABLE}={text!r:.40} is not a number of seconds; the value of the lock is used")
    return lock.parallel.timeout_seconds


class Watchdog:
    """The watchdog's thread. `local` are the ranks of this machine."""

    def __init__(self, seconds: float, output_dir: Path, rank: int, size: int, local: range) -> None:
        self.rank, self.size, self.local = rank, size, local
        self.usual, self.seconds = seconds, max(seconds, FIRST)
        self._place: tuple[Callable[[], str], str] = (str, "")  # the function for the position, and its first value
        self.tick = min(5.0, max(0.1, seconds / 20))
        self.hearts = Heartbeats(output_dir, start_name(os.environ), rank) if size > 1 else None
        self._host, self._born = socket.gethostname(), process_start_time(os.getpid())
        self._count, self._stalled, self._marks = 0, 0.0, _marks
        self._armed = float("-inf")
        self._beats: dict[int, Beat] = {}
        self._finished: set[int] = set()  # ranks that have removed their heartbeat
        self._heard: dict[int, int] = {}  # this rank's count when the beat of another was last seen to change
        self._gone: tuple[float, str] | None = None  # time and description
        #: True once it has printed why the run ends: the main thread's errors that follow are not printed.
        self.spoken = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        """Start the thread; return this watchdog."""
        self._arm(time.monotonic())  # the thread may be kept from its first look already
        self._thread.start()
        return self

    def follow(self, position: Callable[[], str]) -> None:
        """Use `position` from now on to get the run's position. Its present value is the start."""
        self._place = position, position()

    def close(self, message: str = "") -> None:
        """Stop watching. A `message` is the reason of this rank's failure; the others get it, so that none waits."""
        self._closed.set()
        # Not while it writes: a heartbeat after the last one would look like a process that was killed.
        self._thread.join(timeout=10 * self.tick)
        faulthandler.cancel_dump_traceback_later()
        if self.hearts is not None:
            if message:
                self.hearts.end(message)
            self.hearts.close()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:
            # Its timer would end a run that makes progress.
            faulthandler.cancel_dump_traceback_later()
            warn(f"the watchdog has ended, and training goes on without it: {type(error).__name__}: {error}")

    def _watch(self) -> None:
        before = time.monotonic()
        if self.hearts is not None:
            self._beat()
        while not self._closed.wait(self.tick):
            now = time.monotonic()
            # If the whole process was stopped (a suspended job, a debugger) that time is not the run's.
            self._count_time(min(now - before, 4 * self.tick))
            before = now
            self._arm(now)
            if self.hearts is None:
                if self._stalled >= self.seconds:
                    self._end_alone()
                continue
            self._beat()
            self._look_for_the_dead(now)
            self._judge()

    def _count_time(self, passed: float) -> None:
        done = _marks
        self._stalled = 0.0 if done != self._marks else self._stalled + passed
        self._marks = done
        self._count += 1
        if self.seconds != self.usual:
            position, first = self._place
            if position() != first:
                self.seconds = self.usual  # the first step is made

    def _arm(self, now: float) -> None:
        """Reset faulthandler's timer, well before it would fire."""
        if now - self._armed > self.usual / 8:
            self._armed = now
            seconds, file = 1.5 * self.seconds + 2 * GROUP_MARGIN, sys.__stderr__ or sys.stderr
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)

    def _beat(self) -> None:
        assert self.hearts is not None
        phase = phases.look()
        beat = Beat(
            rank=self.rank,
            host=self._host,
            pid=os.getpid(),
            born=self._born,
            count=self._count,
            marks=self._marks,
            seconds=self._stalled,
            phase=phase.name,
            waiting=phase.waiting,
            # Not needed while there is progress.
            stack=phase.stack if self._stalled > 2 * self.tick else "",
        )
        self._beats[self.rank] = beat
        self.hearts.write(beat)

    def _read_beats(self, ranks: range | list[int]) -> None:
        assert self.hearts is not None
        for rank in ranks:
            beat, old = self.hearts.read(rank), self._beats.get(rank)
            if beat is None and old is not None:
                self._finished.add(rank)
            if rank == self.rank or beat is None:
                continue
            if old is not None and old.count != beat.count:
                self._heard[rank] = self._count
            self._beats[rank] = beat

    def _alive_ranks(self) -> set[int]:
        """Return the ranks known to be alive, including this one."""
        since = self._count - LOOKS * max(1.0, self._every() / self.tick)
        return {self.rank, *(rank for rank, count in self._heard.items() if count >= since)}

    def _every(self) -> float:
        """Return the seconds between two checks of the other ranks."""
        return max(self.tick, self.seconds / 20)

    # The end of other ranks

    def _look_for_the_dead(self, now: float) -> None:
        """End this process (R514) some time after another has ended: a rank that waits for it may not notice."""
        assert self.hearts is not None
        if self._gone is None:
            lost = self._killed_here() or self.hearts.ended()
            if lost is None:
                return
            self._gone = now, lost
        since, lost = self._gone
        if "R525" in lost:
            self._follow(lost)
        # A checkpoint that is being written is worth waiting for.
        if now - since < GRACE or self._beats[self.rank].phase == "checkpoint":
            return
        finding = RuntimeFinding(
            "R514",
            f"rank {self.rank} has lost the other processes",
            f"{lost}\nthis process was in `{self._beats[self.rank].phase}` and was ended",
            "another rank ended first: its message above or below is the reason",
            everywhere=False,
        )
        self._leave(finding)

    def lost(self) -> str:
        """Return a description of the process that has ended, if it can be seen from here, for an error of the main
        thread.
        """
        until = time.monotonic() + 2.0
        while self.hearts is not None and time.monotonic() < until:
            found = self._killed_here(met=True) or self.hearts.ended()
            if found is not None:
                return found
            time.sleep(0.1)
        return ""

    def _follow(self, lost: str) -> None:
        """End this process because the run hangs. Write its stacks, and print them if it does not wait for others."""
        assert self.hearts is not None
        self.spoken = True
        phase = phases.look()
        text = self._stacks(phase)
        self.hearts.dump(text)
        if not phase.waiting:
            sys.stderr.write(text)
            self._ask_loaders(phase)
        print(f"rank {self.rank} was in `{phase.name}` and is ended: {lost}", file=sys.stderr, flush=True)
        self._leave(None)

    def _killed_here(self, met: bool = False) -> str | None:
        """Return a description of a killed rank on this machine, and tell all ranks of it; None if there is none.

        Before the ranks have `met`, a heartbeat without a living process may be an earlier start's.
        """
        assert self.hearts is not None
        for rank in self.local:
            beat = self._beats.get(rank)
            if beat is None and rank != self.rank:
                beat = self.hearts.read(rank)
                if beat is not None and beat.host == self._host and (met or process_start_time(beat.pid) == beat.born):
                    self._beats[rank] = beat
                if not met:
                    continue
            if (
                beat is None
                or rank == self.rank
                or beat.host != self._host
                or process_start_time(beat.pid) == beat.born
            ):
                continue
            # A rank that ended regularly has removed its file before.
            last = self.hearts.read(rank)
            if last is not None:
                lost = f"rank {rank} on {last.host} (process {last.pid}) was killed, last seen in `{last.phase}`"
                self.hearts.end(lost)
                return lost
        return None

    # Hangs

    def _judge(self) -> None:
        """End the run if no rank makes progress. The lowest rank that answers reports for all."""
        if self._stalled > self.seconds / 2 and self._stalled % self._every() < self.tick:
            # Rank 0 looks at all the others, they at rank 0 alone, or a thousand ranks read a million files.
            self._read_beats(range(self.size) if self.rank == 0 else [0])
        if self._stalled < self.seconds:
            return
        if self.rank != 0 and 0 in self._alive_ranks() and self._stalled < self.seconds + GROUP_MARGIN / 2:
            return
        if self.rank != 0:
            self._read_beats(range(self.size))
            self._closed.wait(3 * self.tick)
            self._read_beats(range(self.size))
            if min(self._alive_ranks()) != self.rank and self._stalled < self.seconds + GROUP_MARGIN / 2:
                return
        # As long as one of them gets on, the others wait for it with reason.
        answering = self._alive_ranks()
        if min(beat.seconds for rank, beat in self._beats.items() if rank in answering) < 0.8 * self.seconds:
            return
        self._end_all()

    def _end_alone(self) -> None:
        phase = phases.look()
        sys.stderr.write(self._stacks(phase))
        self._ask_loaders(phase)
        self._leave(
            RuntimeFinding(
                "R525",
                f"no progress for {self.seconds:.0f} s{self._at()}, in `{phase.name}`",
                f"process {os.getpid()} on {self._host}; the stack of every thread is above, the main one ends with\n"
                + phase.stack,
                _HELP,
            )
        )

    def _end_all(self) -> None:
        """Report the ranks that hang, and end every process that this one can reach."""
        assert self.hearts is not None
        stuck, answering = self._stuck_ranks(), self._alive_ranks()
        lines = []
        for rank in stuck[:SHOWN]:
            beat = self._beats.get(rank)
            if beat is None:
                lines.append(f"rank {rank} has left no heartbeat: it did not start, or sees another output folder")
                continue
            what = f"rank {rank} on {beat.host}, process {beat.pid}, "
            if rank in answering:
                lines.append(f"{what}has been in `{beat.phase}` for {beat.seconds:.0f} s:\n{beat.stack}")
            else:
                lines.append(
                    f"{what}does not answer: it is stopped, dead, or in code that holds the interpreter's lock;"
                    f" last seen in `{beat.phase}`" + (f":\n{beat.stack}" if beat.stack else "")
                )
        lines += [f"and {len(stuck) - SHOWN} more"] if len(stuck) > SHOWN else []
        others: dict[str, list[int]] = {}
        for rank, beat in sorted(self._beats.items()):
            if rank not in stuck:
                others.setdefault(f"`{beat.phase}` on {beat.host}", []).append(rank)
        for place, ranks in others.items():
            lines.append(f"rank {', '.join(map(str, ranks))} {'wait' if len(ranks) > 1 else 'waits'} in {place}")
        lines.append(f"the stack of every thread of each rank: {self.hearts.folder}/rank-*.txt")
        named = ", ".join(
            f"rank {rank}" + (f" on {self._beats[rank].host}" if rank in self._beats else "") for rank in stuck[:SHOWN]
        )
        first = self._beats.get(stuck[0])
        message = f"no progress for {self.seconds:.0f} s{self._at()}: {named}"
        if first is None:
            message += " is missing"
        elif first.rank in answering:
            message += f" hangs in `{first.phase}`"
        else:
            message += f" does not answer, last seen in `{first.phase}`"
        finding = RuntimeFinding("R525", message, "\n".join(lines), _HELP)
        self.hearts.dump(self._stacks(phases.look()))
        self.spoken = True
        print(finding.render(), file=sys.stderr, flush=True)
        self.hearts.end(f"R525, {message}")
        # The others have seen that and leave their stacks; those that cannot are ended from here.
        self._closed.wait(6 * self.tick + 2)
        for beat in self._beats.values():
            if beat.rank != self.rank and beat.host == self._host:
                kill(beat)
        self._leave(None)

    def _stuck_ranks(self) -> list[int]:
        """Return the ranks that do not answer or do not wait for others; if all wait, those with the least progress."""
        here = self._alive_ranks() | self._finished
        silent = [rank for rank in range(self.size) if rank not in here]
        known = {rank: beat for rank, beat in self._beats.items() if rank not in self._finished}
        busy = [rank for rank, beat in known.items() if rank not in silent and not beat.waiting]
        if silent or busy:
            return sorted({*silent, *busy})
        marks = {rank: beat.marks for rank, beat in known.items()}
        return sorted(rank for rank, number in marks.items() if number == min(marks.values()))

    def _at(self) -> str:
        found = self._place[0]()
        return f" {found}" if found else ""

    def _stacks(self, phase: phases.Phase) -> str:
        title = f"rank {self.rank} on {self._host}, process {os.getpid()}, in `{phase.name}`; every thread:\n"
        return title + stacks.of_every_thread(self._thread.ident)

    def _ask_loaders(self, phase: phases.Phase) -> None:
        if phase.doing == "loader":
            stacks.ask_loader_processes(f"of rank {self.rank}")

    def _leave(self, finding: RuntimeFinding | None) -> None:
        if self._closed.is_set():
            return  # the main thread has come to its end in the meantime
        if finding is not None:
            print(finding.render(), file=sys.stderr, flush=True)
        if self.hearts is not None:
            self.hearts.close()
        stacks.end_loader_processes()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


_HELP = (
    "look at the stack for a lock, a download, a file system, or a branch that only some ranks take\n"
    f"if the code is correct but slow, set a longer distributed.timeout_seconds, or {VARIABLE} for one start\n"
    "run the same command again: it continues from the last checkpoint"
)
