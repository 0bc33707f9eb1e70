"""Compile a spec for this machine and run the script that comes out: `ratc compile --target local`, then `run.sh`.

Options after `--` go to the runtime, for example `-- --fresh`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys

from ratc.workflow import options, require_trust
from ratc.workflow.compile import compile_spec
from ratc.workflow.findings import Telling

ASKS_FOR_TRUST = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc train``."""
    options.add_spec_arguments(parser, target=False)
    options.add_format_argument(parser)
    options.add_predict_argument(parser)
    parser.add_argument("-o", "--output", metavar="DIR", help="folder of the artifacts")
    parser.add_argument("runtime", nargs="*", metavar="-- OPTION", help="options for the runtime")


def run(args: argparse.Namespace) -> int:
    """The exit status of the script, or 1 when the spec does not compile."""
    with Telling("ratc train", args.format) as telling:
        status, folder = compile_spec(
            options.request(args, "local", args.output), check=False, telling=telling, before=require_trust.before
        )
    if status:
        return status
    # The interpreter that runs ratc trains too, unless the script activates another environment.
    environment = {"RATC_PYTHON": sys.executable, **os.environ}
    command = [os.path.join(os.path.abspath(folder), "run.sh"), *args.runtime]
    # Ctrl-C reaches the script itself, which saves before it ends: wait for that.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # Where standard output is the document of what was found, the script's goes beside it.
        out = None if args.format == "text" else sys.stderr
        sys.stdout.flush()
        done = subprocess.run(command, env=environment, check=False, preexec_fn=_listen, stdout=out)
    finally:
        signal.signal(signal.SIGINT, before)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _listen() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
