"""Check a spec against the schema and the rules, with everything that lies over it for a target."""

from __future__ import annotations

import argparse
import sys

from ratc import compiler
from ratc.cli import inputs
from ratc.sweep import once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc validate``."""
    inputs.add_spec_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status 1 when there is an error."""
    refused = inputs.known_target(args.target)
    if refused:
        inputs.show(refused, "ratc validate")
        return 1
    loaded = inputs.load(args, args.target)
    found = list(loaded.diagnostics)
    if loaded.settings is not None and loaded.document is not None:
        points, said = compiler.points(loaded.document)
        found += said
        found += once(item for point in points for item in compiler.check_point(loaded.document, point)[1])
    if inputs.show(found, "ratc validate"):
        return 1
    print(f"{args.spec}: valid", file=sys.stderr)
    return 0
