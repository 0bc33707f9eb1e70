"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable

from tests.effort import HANGS_S


def wait_until(true: Callable[[], object], what: str, patience: float = HANGS_S) -> None:
    """Wait until something is true; fail when it takes longer than `patience` seconds."""
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, f"waited {patience:.0f} s, and still not: {what}"
        time.sleep(0.05)
