"""The command that a compiled folder records: its options, to make the same again."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import replace
from typing import NoReturn

from ratc.workflow import inputs, options
from ratc.workflow.request import CompileRequest


class Refused(Exception):
    """A recorded command that cannot be read; the text says why."""


def request(words: str, folder: str) -> CompileRequest:
    """What a recorded command asks for, with paths as seen from the shell's folder. Raises ``Refused``."""
    try:
        parts = shlex.split(words)
    except ValueError as error:
        raise Refused(str(error)) from None
    if parts[:2] != ["ratc", "compile"]:
        raise Refused("there is no line `# Again, from this folder: ratc compile …`")
    parser = _Parser(add_help=False, allow_abbrev=False)
    options.add_compile_arguments(parser)
    args = parser.parse_args(parts[2:])
    if inputs.known_target(args.target):
        raise Refused(f"there is no target `{args.target}`")
    asked = options.request(args, output=folder if args.output else None)
    return replace(
        asked,
        spec=os.path.normpath(os.path.join(folder, asked.spec)),
        facts=os.path.normpath(os.path.join(folder, asked.facts)) if asked.facts else None,
        variables={},
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(message)
