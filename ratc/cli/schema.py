"""Print the JSON Schema of a spec, of hardware or cluster facts, or of a lock, for editors and other tools."""

from __future__ import annotations

import argparse

from ratc import resources

_KINDS = ("experiment", "facts", "cluster", "rate", "lock")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc schema``."""
    parser.add_argument("kind", nargs="?", choices=_KINDS, default="experiment", help="what to print the schema of")
    parser.add_argument("--facts", action="store_const", const="facts", help="the same as `facts`")


def run(args: argparse.Namespace) -> int:
    """Always 0."""
    print(resources.read("schemas", f"{args.facts or args.kind}.schema.json").decode(), end="")
    return 0
