"""What commands say, line by line: names of files, keys and values in it command neither a terminal nor a CI system."""

from __future__ import annotations

import sys
from typing import TextIO

from ratc.markup import visible


def say(line: str, file: TextIO | None = None) -> None:
    """Print one line, on standard error if no file is given, at once."""
    print(visible(line), file=file or sys.stderr, flush=True)
