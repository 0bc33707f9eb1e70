"""The running time of a study over all its starts, and its limit: kept in a file of its folder."""

from __future__ import annotations

import json
import math
import os
import time

from ratc import files
from ratc.console import say

_FILE = "spent.json"
#: Bytes of it that are read.
_MOST = 10_000
#: Seconds between two writings: no more is lost if a study is killed.
_EVERY = 5.0


class Budget:
    """Seconds that a study may take; None means that there is no limit."""

    def __init__(self, folder: str, seconds: float | None) -> None:
        self._path, self._seconds = os.path.join(folder, _FILE), seconds
        self._before = _read(self._path)
        self._begun = self._written = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds up to now."""
        return self._before + time.monotonic() - self._begun

    def is_spent(self) -> bool:
        """Whether no time is left. Writes down the time spent now and then."""
        if time.monotonic() - self._written > _EVERY:
            self.keep()
        return self._seconds is not None and self.spent >= self._seconds

    def keep(self) -> None:
        """Write down the time spent, in seconds."""
        self._written = time.monotonic()
        files.replace(self._path, json.dumps({"seconds": round(self.spent, 1)}).encode(), flush=False)


def _read(path: str) -> float:
    try:
        with files.open_regular(path) as file:
            seconds = float(json.loads(file.read(_MOST))["seconds"])
        if 0 <= seconds < math.inf:
            return seconds
        reason = f"it says {seconds} seconds"
    except FileNotFoundError:
        return 0.0
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    say(f"ratc: {path} cannot be read, so the time of earlier starts does not count against the budget ({reason})")
    return 0.0
