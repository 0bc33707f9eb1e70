"""Check a spec against the schema and the rules, with everything that lies over it for a target."""

from __future__ import annotations

import argparse
import sys

from ratc.cli import inputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc validate``."""
    inputs.add_spec_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status 1 when there is an error."""
    refused = inputs.known_target(args.target, planned=True)
    if refused:
        inputs.show(refused, "ratc validate")
        return 1
    loaded = inputs.load(args, args.target)
    if inputs.show(loaded.diagnostics, "ratc validate"):
        return 1
    print(f"{args.spec}: valid", file=sys.stderr)
    return 0
