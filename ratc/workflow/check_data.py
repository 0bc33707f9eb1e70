"""Implements `ratc data check`: locks the spec without a prediction, and lets the runtime read the data by it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from ratc import program
from ratc.catalog import launch_variables
from ratc.diagnostics import Diagnostic, has_errors
from ratc.plan import Plan
from ratc.targets import lock
from ratc.targets.artifact import Place
from ratc.workflow import inputs, require_trust
from ratc.workflow.request import CompileRequest

#: Seconds after which a check of a sample of the data is ended. Each split has a minute of its own to begin with.
LIMIT_S = 1800.0


def plan(request: CompileRequest) -> tuple[Plan | None, str, tuple[Diagnostic, ...]]:
    """Return the plan of a spec in a trusted folder, and that folder; None for the plan if a diagnostic is an error."""
    loaded = inputs.load(request)
    if loaded.settings is None or has_errors(loaded.diagnostics):
        return None, "", tuple(loaded.diagnostics)
    if refused := program.refused(loaded.settings, "a check of the data", "check the data in your program"):
        return None, "", (*loaded.diagnostics, *refused)
    if untrusted := require_trust.refused(loaded):
        return None, "", (*loaded.diagnostics, *untrusted)
    made, found, _ = inputs.resolve(request, loaded.settings, predict=False)
    return made, loaded.folder, (*loaded.diagnostics, *found)


def read_data(made: Plan, folder: str, samples: int | None, pictures: str) -> int:
    """Run the runtime's own command in the spec's folder; returns its exit status. ``samples`` are those of each split,
    all if it is None.
    """
    text = lock.artifact(Place(".", ".", "", "", {}), "local", made.values, ()).text
    with tempfile.TemporaryDirectory(prefix="ratc-") as place:
        path = os.path.join(place, "lock.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return _run(samples, pictures, path, os.path.abspath(folder))


def _run(samples: int | None, pictures: str, path: str, folder: str) -> int:
    interpreter = os.environ.get("RATC_PYTHON") or sys.executable  # as run.sh does: the Python that trains reads, too
    command = [interpreter, "-m", "ratc_runtime.data.check", path]
    command += ["--pictures", os.path.abspath(pictures)]
    command += ["--all"] if samples is None else ["--samples", str(samples)]
    # The folder of the data is in the lock already, from the spec's folder on.
    left_out = ("RAT_DATA_DIR", *launch_variables.LOGS)
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    environment |= {**launch_variables.SAFE, "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    sys.stdout.flush()
    try:
        status = subprocess.run(
            command, cwd=folder, env=environment, check=False, timeout=None if samples is None else LIMIT_S
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"ratc data check: the data were not read within {LIMIT_S:.0f} s", file=sys.stderr)
        return 1
    if status < 0:
        print(f"ratc data check: the process that read the data was ended by signal {-status}", file=sys.stderr)
        return 1
    return status
