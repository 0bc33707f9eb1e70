"""Say what a spec's data set holds before anything is trained: `ratc data check SPEC`.

Reads a sample of each split, or with --all every sample, and prints sizes, channels, values and classes. What cannot be
what the task expects is named, and the exit status is 1. Four random samples are drawn with their masks or boxes.
A data set of your own is imported and run, as training does, if you trust the spec's folder.
Needs the runtime (`pip install 'ratc[runtime]'`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import click

from ratc.catalog import launch_variables
from ratc.cli import options
from ratc.cli.command import PATH, declare
from ratc.console import would
from ratc.diagnostics import has_errors
from ratc.targets import lock
from ratc.targets.artifact import Place
from ratc.workflow import findings, inputs, require_trust
from ratc.workflow.request import CompileRequest

#: Seconds after which a check of a sample of the data is ended. Each split has a minute of its own to begin with.
LIMIT_S = 1800.0


@declare(
    __doc__,
    [
        *options.spec(),
        options.flag("--all", "read every sample, however long that takes", "every"),
        click.Option(["--samples"], metavar="N", type=int, default=64, help="of each split, without --all (64)"),
        click.Option(
            ["-o", "--output", "pictures"],
            metavar="DIR",
            default="data-check",
            type=PATH,
            help="folder of the pictures (data-check)",
        ),
        options.dry_run("check the spec alone; read no data and draw nothing"),
    ],
    {
        "ratc data check config.yaml": "a sample of each split, in `data-check/`",
        "ratc data check config.yaml --all -o pictures": "every sample",
    },
    may_trust=True,
    request=options.request,
)
def check(request: CompileRequest, every: bool, samples: int, pictures: str, dry_run: bool) -> int:
    """Exit status 1 if the spec or the data are refused, 2 without the runtime."""
    if samples < 1:
        print("ratc data check: --samples takes a number above 0", file=sys.stderr)
        return 2
    if find_spec("ratc_runtime") is None or find_spec("torch") is None:
        print("ratc data check: the runtime is not installed here\nhelp: pip install 'ratc[runtime]'", file=sys.stderr)
        return 2
    loaded = inputs.load(request)
    if loaded.settings is None or has_errors(loaded.diagnostics):
        findings.show(loaded.diagnostics, "ratc data check")
        return 1
    if untrusted := require_trust.refused(loaded):
        findings.show((*loaded.diagnostics, *untrusted), "ratc data check")
        return 1
    plan, found, _ = inputs.resolve(request, loaded.settings, predict=False)
    if plan is None:
        findings.show((*loaded.diagnostics, *found), "ratc data check")
        return 1
    if dry_run:
        would("read", "every sample" if every else f"{samples} samples of each split")
        would("write", os.path.join(pictures, "samples.png"))
        return 0
    text = lock.artifact(Place(".", ".", "", "", {}), "local", plan.values, ()).text
    with tempfile.TemporaryDirectory(prefix="ratc-") as place:
        path = os.path.join(place, "lock.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return _check(every, samples, pictures, path, os.path.abspath(loaded.folder))


command = click.Group("data", {"check": check}, help=__doc__, no_args_is_help=False)


def _check(every: bool, samples: int, pictures: str, path: str, folder: str) -> int:
    """Run the runtime's own command in the spec's folder; return its exit status."""
    interpreter = os.environ.get("RATC_PYTHON") or sys.executable  # as run.sh does: what trains also reads
    command = [interpreter, "-m", "ratc_runtime.data.check", path, "--samples", str(samples)]
    command += ["--pictures", os.path.abspath(pictures), *(["--all"] if every else [])]
    # The folder of the data is in the lock already, from the spec's folder on.
    left_out = ("RAT_DATA_DIR", *launch_variables.LOGS)
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    environment |= {**launch_variables.SAFE, "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    sys.stdout.flush()
    try:
        status = subprocess.run(
            command, cwd=folder, env=environment, check=False, timeout=None if every else LIMIT_S
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"ratc data check: the data were not read within {LIMIT_S:.0f} s", file=sys.stderr)
        return 1
    if status < 0:
        print(f"ratc data check: the process was ended by signal {-status}", file=sys.stderr)
        return 1
    return status
