"""The progress of a study: lines for its events, and on a terminal a table below that is redrawn."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable

from ratc import console
from ratc.markup import visible

#: Seconds between two tables.
_EVERY = 1.0


class Live:
    """Draws ``table()`` below the printed lines. If standard error is not a terminal, only the lines are printed."""

    def __init__(self, table: Callable[[], str]) -> None:
        self._table = table
        self._on = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._rows, self._last = 0, float("-inf")

    def say(self, line: str) -> None:
        """Print one line above the table."""
        self._erase()
        console.say(line)
        self._last = float("-inf")

    def show(self) -> None:
        """Draw the table again, if it is time."""
        if not self._on or time.monotonic() - self._last < _EVERY:
            return
        self._last = time.monotonic()
        width, height = shutil.get_terminal_size()
        rows = [visible(row)[: width - 1] for row in self._table().splitlines()]
        if len(rows) > height - 2:
            rows = [*rows[: height - 3], f"… and {len(rows) - height + 3} more"]
        self._erase()
        sys.stderr.write("".join(f"{row}\n" for row in rows))
        sys.stderr.flush()
        self._rows = len(rows)

    def end(self) -> None:
        """Erase the table: the caller prints the last one."""
        self._erase()

    def _erase(self) -> None:
        if self._rows:
            sys.stderr.write(f"\x1b[{self._rows}A\x1b[J")  # up, and clear to the end of the screen
            self._rows = 0
