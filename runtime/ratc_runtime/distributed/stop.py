"""Stop requests: a signal or the file `STOP` asks a run to stop, and the ranks agree at a step boundary.

A killed launcher counts as a request, too: nothing else would end its processes or read their exit status. Nothing is
saved inside a signal handler. A batch script's trap makes the file `STOP` in the output folder, because it reaches the
ranks through every launcher and container.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType

from ratc_runtime.errors import RuntimeFinding

STOP_FILE = "STOP"
#: Written beside it by a run that has saved as requested, and read by a batch script. It holds the reason.
STOPPED_FILE = "STOPPED"


class StopRequest:
    """The stop request of this process, if any. A second Ctrl-C ends the process at once."""

    def __init__(self, output_dir: Path, main: bool) -> None:
        self.file = output_dir / STOP_FILE
        self.main = main
        self.reason: str | None = None
        # torchrun and Accelerate start several processes and stand above them; a killed one leaves orphans, which
        # nobody would end. A single process may outlive the shell that started it.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def listen(self) -> None:
        """Install handlers for SIGTERM, SIGUSR2 and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == "SIGINT":
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.reason = signal.Signals(number).name

    def pending(self) -> bool:
        """Return whether this process has a stop request. Only the main one checks for the file."""
        if self.reason is None and self.main and os.path.exists(self.file):  # False too if the folder is gone
            self.reason = f"the file {STOP_FILE}"
        if self.reason is None and self._launcher not in (None, os.getppid()):
            self.reason = "the launcher is gone"
        return self.reason is not None

    def saved(self) -> None:
        """Write a file that tells that the run has stopped and can continue; raise R510 on failure."""
        if not self.main:
            return
        path = self.file.parent / STOPPED_FILE
        try:
            path.write_text(f"{self.reason or 'a signal to another rank'}\n")
        except OSError as error:
            raise RuntimeFinding(
                "R510", f"cannot write {path}", error.strerror or str(error), everywhere=False
            ) from None

    def done(self) -> None:
        """Remove the file `STOP`, because the run has stopped as requested, or is over.

        It is not removed at the start, which would lose a request made while this process was starting.
        """
        if self.main:
            with contextlib.suppress(OSError):  # a folder that is gone or read-only
                self.file.unlink(missing_ok=True)
