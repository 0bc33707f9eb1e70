"""Print the JSON Schema of a spec, of hardware or cluster facts, or of a lock, for editors and other tools."""

from __future__ import annotations

import click

from ratc import resources
from ratc.cli import options
from ratc.cli.command import Argument, declare

_KINDS = ("experiment", "facts", "cluster", "rate", "lock", "program-lock")


@declare(
    __doc__,
    [
        Argument(
            "kind",
            "KIND",
            f"one of {', '.join(_KINDS)}",
            type=click.Choice(_KINDS),
            required=False,
            default="experiment",
        ),
        options.flag("--facts", "the same as `facts`"),
    ],
    {"ratc schema": "of a spec", "ratc schema cluster": "of cluster facts"},
)
def command(kind: str, facts: bool) -> int:
    """Always 0."""
    print(resources.read("schemas", f"{'facts' if facts else kind}.schema.json").decode(), end="")
    return 0
