"""Write a small data set.

`brain` has axial slices of the MNI152 template with their white matter, and `brain3d` blocks of the same volume with
grey and white matter. `shapes` has drawn circles, squares and triangles with their boxes, and `digits` handwritten
digits by class.

Needs the runtime (`pip install 'ratc[runtime]'`): it makes the pictures.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import click

from ratc.catalog import launch_variables
from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.console import would

#: The runtime's own names (`ratc_runtime.data.sample.NAMES`; a test compares them).
NAMES = ("brain", "brain3d", "shapes", "digits")


@declare(
    __doc__,
    [
        Argument("name", "NAME", "brain, brain3d, shapes or digits", type=click.Choice(NAMES)),
        Argument("folder", "DIR", "the folder to write to", type=PATH),
        options.dry_run(),
    ],
    {"ratc sample-data brain data/brain": "write slices of a brain, with masks"},
)
def command(name: str, folder: str, dry_run: bool) -> int:
    """The exit status of the runtime's own command."""
    if find_spec("ratc_runtime") is None or find_spec("numpy") is None:
        print(
            "ratc sample-data: the runtime is not installed here\nhelp: pip install 'ratc[runtime]'",
            file=sys.stderr,
        )
        return 2
    if dry_run:
        would("write", f"the data set {name} into {folder}")
        return 0
    command = [sys.executable, "-m", "ratc_runtime.data.sample", "--", name, folder]
    return subprocess.run(command, check=False, env={**os.environ, **launch_variables.SAFE}).returncode
