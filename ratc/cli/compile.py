"""Work out how to train a spec, and write it down: lock.yaml, the launcher's files, the job script.

They go into compiled/<experiment_name>/<target>/ beside the spec; -o puts them elsewhere.
"""

from __future__ import annotations

import os
import sys

from ratc.cli import options
from ratc.cli.command import declare
from ratc.console import say
from ratc.workflow.compile import compile_spec
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.request import CompileRequest


@declare(
    __doc__,
    [
        *options.spec(),
        options.target(),
        options.form(),
        options.no_predict(),
        options.samples(),
        options.loader_rate(),
        options.folder(),
        options.flag("--check", "write nothing; exit with 1 if the files do not match the spec"),
        options.verify(),
        options.dry_run("list the files that would be written, and write nothing", traces=True),
    ],
    {
        "ratc compile config.yaml": "for this machine",
        "ratc compile config.yaml --target slurm --cluster ours": "for a cluster, as a job to review and submit",
        "ratc compile config.yaml --set training.weight_decay=0.1 --epochs 50": "with other values",
        "ratc compile config.yaml --check": "check whether the committed files still match the spec",
    },
    may_trust=True,
    request=options.request,
)
def command(request: CompileRequest, form: str, check: bool, verify: bool, dry_run: bool) -> int:
    """Exit status 1 on errors, and on differences with ``--check``."""
    with FindingsPrinter("ratc compile", form) as printer:
        status, folder = compile_spec(request, check, printer, verify=verify, dry_run=dry_run)
    if status == 0 and not (check or dry_run) and form == "text":
        say(os.path.relpath(folder), sys.stdout)
    return status
