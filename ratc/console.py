"""What commands say, line by line: names of files, keys and values in it command neither a terminal nor a CI system."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from ratc.markup import visible

_silent: ContextVar[bool] = ContextVar("silent", default=False)


def say(line: str, file: TextIO | None = None) -> None:
    """Print one line, on standard error if no file is given, at once."""
    if not _silent.get():
        print(visible(line), file=file or sys.stderr, flush=True)


def would(deed: str, *names: str) -> None:
    """Say what a command would do with each of these if this were no dry run."""
    for name in names:
        say(f"would {deed}: {name}")


@contextmanager
def silence() -> Iterator[None]:
    """Say nothing in this thread meanwhile: what is found is in what the caller returns."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)
