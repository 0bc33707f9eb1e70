"""Work out how to train what a spec describes, and write it down: lock.yaml, the launcher's files, the job script.

They go into compiled/<experiment_name>/<target>/ beside the spec; -o puts them elsewhere.
"""

from __future__ import annotations

import argparse
import os
import sys

from ratc.console import say
from ratc.workflow import options
from ratc.workflow.compile import compile_spec
from ratc.workflow.findings import Telling

ASKS_FOR_TRUST = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc compile``."""
    options.add_compile_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status 1 on errors, and on differences with ``--check``."""
    with Telling("ratc compile", args.format) as telling:
        status, folder = compile_spec(
            options.request(args, output=args.output), args.check, telling, verify=args.verify
        )
    if status == 0 and not args.check and args.format == "text":
        say(os.path.relpath(folder), sys.stdout)
    return status
