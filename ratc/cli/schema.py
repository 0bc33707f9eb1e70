"""Print the JSON Schema of a spec, for editors and other tools."""

from __future__ import annotations

import argparse

from ratc import resources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc schema``."""
    parser.add_argument("--facts", action="store_true", help="the schema of a hardware facts file instead")


def run(args: argparse.Namespace) -> int:
    """Always 0."""
    print(
        resources.read("schemas", "facts.schema.json" if args.facts else "experiment.schema.json").decode(),
        end="",
    )
    return 0
