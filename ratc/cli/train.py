"""Compile a spec for this machine and run the script that comes out: `ratc compile --target local`, then `run.sh`.

Options after `--` go to the runtime, for example `-- --fresh`, for which `--fresh` is short.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

from ratc.cli import options
from ratc.cli.command import Argument, declare
from ratc.console import would
from ratc.workflow import require_trust
from ratc.workflow.compile import compile_spec
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.request import CompileRequest


@declare(
    __doc__,
    [
        *options.spec(),
        Argument("runtime", "-- OPTION", "options of the runtime, after `--`", nargs=-1, required=False),
        options.form(),
        options.no_predict(),
        options.folder(),
        options.dry_run(traces=True),
        options.flag("--fresh", "train from the beginning, although there is a checkpoint or the run is finished"),
    ],
    {
        "ratc train config.yaml": "compile for this machine and train",
        "ratc train config.yaml --epochs 1 --debug": "a short run to see whether everything works",
        "ratc train config.yaml --fresh": "train from the beginning, although there is a checkpoint",
    },
    may_trust=True,
    request=options.request,
)
def command(request: CompileRequest, runtime: tuple[str, ...], form: str, dry_run: bool, fresh: bool) -> int:
    """The exit status of the script, or 1 when the spec does not compile."""
    runtime = (*runtime, "--fresh") if fresh and "--fresh" not in runtime else runtime
    with FindingsPrinter("ratc train", form) as printer:
        status, folder = compile_spec(
            request, check=False, printer=printer, before=require_trust.before, dry_run=dry_run
        )
    if status:
        return status
    if dry_run:
        would("run", shlex.join([os.path.join(os.path.relpath(folder), "run.sh"), *runtime]))
        return 0
    # The interpreter that runs ratc trains too, unless the script activates another environment.
    environment = {"RATC_PYTHON": sys.executable, **os.environ}
    command = [os.path.join(os.path.abspath(folder), "run.sh"), *runtime]
    # If standard output is the document of the findings, the script's output goes to standard error.
    out = None if form == "text" else sys.stderr
    sys.stdout.flush()
    # Ctrl-C reaches the script itself, which saves before it ends: wait for that. SIGTERM is handed on to it.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        script = subprocess.Popen(command, env=environment, preexec_fn=_listen, stdout=out)
        signal.signal(signal.SIGTERM, lambda number, _frame: script.send_signal(number))
        status = script.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _listen() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
