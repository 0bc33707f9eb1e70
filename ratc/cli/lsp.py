"""Serve an editor: findings, values with their reasons, keys and quick fixes of the specs that are open in it.

Speaks the language server protocol over standard input and output; an editor starts it, and it ends with the editor.
No code of a spec is run. Needs the extra `lsp`: pip install 'ratc[lsp]'.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from ratc.cli import options
from ratc.cli.command import declare
from ratc.diagnostics import Diagnostic
from ratc.workflow import findings
from ratc.workflow.inputs import known_target


@declare(
    __doc__,
    [options.target()],
    {"ratc lsp": "the command for the settings of your editor", "ratc lsp --target slurm": "check specs for Slurm"},
)
def command(target: str) -> int:
    """Exit status 1 without pygls, or for a target that there is none of."""
    refused = known_target(target)
    if refused:
        return int(findings.show(refused, "ratc lsp"))
    if find_spec("pygls") is None:
        helps = ("pip install 'ratc[lsp]'",)
        return int(findings.show([Diagnostic("R452", "the language server needs pygls", helps=helps)], "ratc lsp"))
    # Imported here: a command of its own needs it, in an extra of its own.
    from ratc.lsp.server import make

    # A stream of its own: pygls closes it when the editor ends the server, and what follows still flushes stdout.
    with open(os.dup(sys.stdout.fileno()), "wb") as answers:
        make(target).start_io(stdout=answers)
    return 0
