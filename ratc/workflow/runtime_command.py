"""Runs a command of the runtime in the Python that trains, with the words that it was given."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from ratc.console import say, would


def run(name: str, words: Sequence[str], dry_run: bool = False) -> int:
    """Run `python -m ratc_runtime NAME WORDS`; returns its exit status, 2 without the runtime, 130 after Ctrl-C.

    The Python is that of `RATC_PYTHON`, as for a compiled script, or the one that runs ratc.
    """
    interpreter = os.environ.get("RATC_PYTHON") or sys.executable
    if interpreter == sys.executable and (find_spec("ratc_runtime") is None or find_spec("torch") is None):
        say(f"ratc {name}: the runtime is not installed here")
        say("help: pip install 'ratc[runtime]', or name a Python that has it in `RATC_PYTHON`")
        return 2
    command = [interpreter, "-m", "ratc_runtime", name, *words]
    if dry_run:
        would("run", shlex.join(command))
        return 0
    sys.stdout.flush()
    try:
        status = subprocess.run(command, check=False).returncode
    except OSError as error:
        say(f"ratc {name}: cannot start `{interpreter}`: {error.strerror}")
        return 2
    return status if status >= 0 else 128 - status
