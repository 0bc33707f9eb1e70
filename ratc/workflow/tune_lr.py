"""The range test of `ratc tune lr`: compile the spec, run the test in a process, keep the rate beside the spec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO

from ratc import files, program, rates
from ratc.catalog import launch_variables
from ratc.console import say, would
from ratc.tuning import curve
from ratc.workflow import inputs, require_trust
from ratc.workflow.compile import compile_spec
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.inputs import Loaded
from ratc.workflow.request import CompileRequest

FOLDER = "learning-rate"


@dataclass(frozen=True, slots=True)
class RangeTest:
    """The inputs of a range test: the loaded spec, the lock's folder, and the folder of its curve."""

    spec: str
    loaded: Loaded
    compiled: str
    folder: str


def prepare(request: CompileRequest, printer: FindingsPrinter, dry_run: bool) -> RangeTest | None:
    """Compile the spec into `learning-rate/` below its output folder; None if it fails, after printing the findings."""
    loaded = inputs.load(request)
    if loaded.settings is None:
        printer.print(loaded.diagnostics)
        return None
    settings = loaded.settings
    if refused := program.refused(settings, "a test of learning rates", "use `sweep`, or do it in the program"):
        printer.print((*loaded.diagnostics, *refused))
        return None
    if settings["training.learning_rate"].value == "auto":
        # The test searches for this value: any number compiles, and it is not used.
        request = replace(request, sets=(*request.sets, "training.learning_rate=1e-4"))
    output = settings["output_dir"].value or f"outputs/{settings['experiment_name'].value}"
    above = os.path.normpath(os.path.join(loaded.folder, output))
    folder = os.path.join(above, FOLDER)
    files.refuse_link(above, os.path.join(FOLDER, "curve.json"))
    request = replace(request, output=os.path.join(folder, "compiled"))
    status, compiled = compile_spec(request, check=False, printer=printer, before=require_trust.before, dry_run=dry_run)
    return None if status else RangeTest(request.spec, loaded, os.path.abspath(compiled), os.path.abspath(folder))


def announce(test: RangeTest) -> None:
    """Print the actions of `run`, for a dry run."""
    would("run", "range test of the learning rate, in one process on this machine")
    would("write", *(os.path.relpath(os.path.join(test.folder, name)) for name in ("curve.json", "curve.svg")))
    would("write", _kept(test.spec))


def run(test: RangeTest, given: Sequence[str], out: TextIO) -> int:
    """Run the test with these options of the runtime's, and print the rate to ``out``; returns the exit status."""
    path = os.path.join(test.folder, "curve.json")
    if os.path.exists(path):
        os.unlink(path)
    words = [os.environ.get("RATC_PYTHON") or sys.executable, "-m", "ratc_runtime.extras.range_test"]
    words += [os.path.join(test.compiled, "lock.yaml"), "-o", path, *given]
    # As the job script does: paths of a spec start from its folder.
    environment = launch_variables.without(os.environ) | launch_variables.SAFE
    done = subprocess.run(words, cwd=test.loaded.folder, check=False, env=environment)
    if not os.path.exists(path):
        return done.returncode if done.returncode > 0 else 1
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    files.replace(os.path.join(test.folder, "curve.svg"), curve.svg(found).encode())
    if found["learning_rate"] is not None:
        say(f"learning rate {found['learning_rate']:.1e}: {found['reason']}", out)
        kept = _keep(test.spec, test.loaded, found)
        say(f"help: `training.learning_rate: auto` takes it from {kept}")
    say(f"written: {os.path.relpath(test.folder)}")
    return 0 if done.returncode == 0 else 1


def _keep(spec: str, loaded: Loaded, found: Mapping[str, Any]) -> str:
    """Write the rate beside the spec, for `learning_rate: auto`; returns the file."""
    assert loaded.settings is not None
    path = _kept(spec)
    measured = {
        "learning_rate": found["learning_rate"],
        "global_batch_size": found["global_batch_size"],
        "of": rates.conditions(loaded.settings),
        "reason": found["reason"],
        "steps": len(found["points"]),
        "device": found["device"],
        "precision": found["precision"],
        "date": time.strftime("%Y-%m-%d"),
    }
    files.replace(path, rates.text(measured).encode())
    return path


def _kept(spec: str) -> str:
    """Return the path of the file beside a spec that keeps the rate."""
    folder, name = os.path.split(spec)
    return os.path.join(folder, rates.file_name(name))
