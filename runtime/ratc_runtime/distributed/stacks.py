"""The Python stacks of a process that hangs, and of its loader processes."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

#: A loader process prints its stacks on this signal.
ASKED = signal.SIGUSR1


def of_every_thread(but: int | None) -> str:
    """Return the stacks of this process's threads, except for the calling thread `but`."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "".join(
        f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != but
    )


def answer_when_asked() -> None:
    """Make this loader process print its stacks on the signal `ASKED`."""
    faulthandler.register(ASKED, file=sys.__stderr__ or sys.stderr, all_threads=True)


def ask_loader_processes(whose: str) -> None:
    """Make the loader processes of this one print their stacks on stderr, one after the other."""
    for child in multiprocessing.active_children():
        if child.pid is not None and _catches(child.pid, ASKED):
            print(f"loader process {child.pid} {whose}:", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                os.kill(child.pid, ASKED)
            time.sleep(0.2)


def end_loader_processes() -> None:
    """Kill this process's daemon children, also one that hangs, as the interpreter's exit would."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _catches(pid: int, number: int) -> bool:
    """Return whether a process handles a signal, which would otherwise end it. Source: proc(5), SigCgt."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)
