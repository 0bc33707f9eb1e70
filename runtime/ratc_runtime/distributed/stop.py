"""Asking a run to stop: a signal sets a flag, a file stands for one, and the ranks agree at a step boundary.

A launcher that was killed asks for it too: nobody would end its processes, nor see how they end.

Nothing is saved inside a signal handler. The file, `STOP` in the output folder, is what a batch script's trap
makes: it reaches the ranks through every launcher and container.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType

from ratc_runtime.errors import RuntimeFinding

STOP_FILE = "STOP"
#: Left beside it by a run that has saved as it was asked; a batch script reads it. It holds the reason.
STOPPED_FILE = "STOPPED"


class StopRequest:
    """Whether this process has been asked to stop. A second Ctrl-C ends it at once."""

    def __init__(self, output_dir: Path, main: bool) -> None:
        self.file = output_dir / STOP_FILE
        self.main = main
        self.reason: str | None = None
        # torchrun and Accelerate start several processes and stand above them; a killed one leaves orphans, which
        # nobody would end. A single process may outlive the shell that started it.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def listen(self) -> None:
        """Take over SIGTERM, SIGUSR2 and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == "SIGINT":
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.reason = signal.Signals(number).name

    def pending(self) -> bool:
        """Tell whether this process wants to stop; only the main one looks for the file."""
        if self.reason is None and self.main and os.path.exists(self.file):  # False too if the folder is gone
            self.reason = f"the file {STOP_FILE}"
        if self.reason is None and self._launcher not in (None, os.getppid()):
            self.reason = "the launcher is gone"
        return self.reason is not None

    def saved(self) -> None:
        """Leave word that the run has stopped as asked and can go on from its checkpoint; raise R510 if it cannot."""
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
        """Take the file away: the run has stopped as asked, or is over.

        Not at the start, where a request made while this process was starting would be lost.
        """
        if self.main:
            with contextlib.suppress(OSError):  # a folder that is gone or read-only
                self.file.unlink(missing_ok=True)
