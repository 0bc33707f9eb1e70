"""Check a spec against the schema and the rules, with everything that lies over it for a target."""

from __future__ import annotations

import argparse

from ratc import compiler
from ratc.cli import fixing, inputs
from ratc.cli.console import say
from ratc.diagnostics import Diagnostic
from ratc.sweep import once

#: One finding may hide others; nothing takes more rounds than keys lie within one another.
_ROUNDS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc validate``."""
    inputs.add_spec_arguments(parser)
    inputs.add_format_argument(parser)
    parser.add_argument("--fix", action="store_true", help="correct mistyped keys in the spec and its overlays")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 when there is an error."""
    refused = inputs.known_target(args.target)
    if refused:
        inputs.show(refused, "ratc validate", args.format)
        return 1
    loaded = inputs.load(args, args.target)
    problems = _fixed(args, loaded) if args.fix else ()
    if args.fix:
        loaded = inputs.load(args, args.target)
    found = [*loaded.diagnostics, *problems]
    if loaded.settings is not None and loaded.document is not None:
        points, said = compiler.points(loaded.document)
        study, more = compiler.study(loaded.document)
        found += (*said, *more)
        trials = study.points if study else ()
        found += once(item for point in (*points, *trials) for item in compiler.check_point(loaded.document, point)[1])
    if inputs.show(found, "ratc validate", args.format):
        return 1
    say(f"{args.spec}: valid")
    return 0


def _fixed(args: argparse.Namespace, loaded: inputs.Loaded) -> tuple[Diagnostic, ...]:
    """Correct what can be corrected, again while that lets more be seen; says what it did."""
    for _ in range(_ROUNDS):
        names = [file.name for file in (loaded.inputs.spec, *loaded.inputs.overlays)]
        told, problems = fixing.fix(names, loaded.diagnostics)
        for line in told:
            say(f"fixed: {line}")
        if problems or not told:
            return problems
        loaded = inputs.load(args, args.target)
    return ()
