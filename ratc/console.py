"""Prints the lines of commands: names of files, keys and values in them cannot control a terminal or a CI system."""

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
    """Print the action that a dry run leaves out, one line for each name."""
    for name in names:
        say(f"would {deed}: {name}")


@contextmanager
def silence() -> Iterator[None]:
    """Print nothing in this thread meanwhile: the caller returns the findings."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)
