"""Find a learning rate by a range test: train for some steps with one that grows, draw the curve, suggest a value.

The spec's own model, data, loss and global batch, in one process on this machine; nothing is kept of the model. The
outcome lies in `learning-rate/` below the output folder: curve.json, curve.svg, and the compiled files it was made by.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

import click

from ratc import files, rates
from ratc.catalog import launch_variables
from ratc.cli import options
from ratc.cli.command import declare
from ratc.console import say, would
from ratc.tuning import curve
from ratc.workflow import inputs, require_trust
from ratc.workflow.compile import compile_spec
from ratc.workflow.findings import Telling
from ratc.workflow.inputs import Loaded
from ratc.workflow.request import CompileRequest

FOLDER = "learning-rate"


@declare(
    __doc__,
    [
        *options.spec(),
        options.form(),
        options.no_predict(),
        click.Option(["--low"], metavar="RATE", help="the first rate (default: 1e-6)"),
        click.Option(["--high"], metavar="RATE", help="the last rate (default: 1)"),
        click.Option(["--steps"], metavar="N", help="optimizer steps at most (default: 100)"),
        options.dry_run(),
    ],
    {
        "ratc tune lr config.yaml": "a hundred steps, from 1e-6 to 1",
        "ratc tune lr config.yaml --low 1e-5 --high 0.1 --steps 200": "more steps in a narrower range",
    },
    may_trust=True,
    request=options.request,
)
def command(
    request: CompileRequest, form: str, low: str | None, high: str | None, steps: str | None, dry_run: bool
) -> int:
    """Exit status 1 on errors and if no rate can be suggested, 2 for a range that is none."""
    with Telling("ratc tune lr", form) as telling:
        loaded = inputs.load(request)
        if loaded.settings is None:
            telling.tell(loaded.diagnostics)
            return 1
        settings = loaded.settings
        if settings["training.learning_rate"].value == "auto":
            # It is what is looked for; any number compiles, and none of it is trained with.
            request = replace(request, sets=(*request.sets, "training.learning_rate=1e-4"))
        output = settings["output_dir"].value or f"outputs/{settings['experiment_name'].value}"
        above = os.path.normpath(os.path.join(loaded.folder, output))
        folder = os.path.join(above, FOLDER)
        files.refuse_link(above, os.path.join(FOLDER, "curve.json"))
        request = replace(request, output=os.path.join(folder, "compiled"))
        status, compiled = compile_spec(
            request, check=False, telling=telling, before=require_trust.before, dry_run=dry_run
        )
    if status:
        return status
    if dry_run:
        would("run", "a range test of the learning rate, in one process on this machine")
        would("write", *(os.path.relpath(os.path.join(folder, name)) for name in ("curve.json", "curve.svg")))
        would("write", _kept(request.spec))
        return 0
    ends = {"low": low, "high": high, "steps": steps}
    given = [f"--{name}={text}" for name, text in ends.items() if text is not None]
    out = sys.stdout if form == "text" else sys.stderr
    return _measure(request.spec, given, loaded, os.path.abspath(compiled), os.path.abspath(folder), out)


def _measure(spec: str, given: Sequence[str], loaded: Loaded, compiled: str, folder: str, out: TextIO) -> int:
    path = os.path.join(folder, "curve.json")
    if os.path.exists(path):
        os.unlink(path)
    words = [os.environ.get("RATC_PYTHON") or sys.executable, "-m", "ratc_runtime.extras.range_test"]
    words += [os.path.join(compiled, "lock.yaml"), "-o", path, *given]
    # As the job script does: paths of a spec start from its folder.
    environment = launch_variables.without(os.environ) | launch_variables.SAFE
    done = subprocess.run(words, cwd=loaded.folder, check=False, env=environment)
    if not os.path.exists(path):
        return done.returncode if done.returncode > 0 else 1
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    files.replace(os.path.join(folder, "curve.svg"), curve.svg(found).encode())
    if found["learning_rate"] is not None:
        say(f"learning rate {found['learning_rate']:.1e}: {found['reason']}", out)
        kept = _keep(spec, loaded, found)
        say(f"help: `training.learning_rate: auto` takes it from {kept}")
    say(f"written: {os.path.relpath(folder)}")
    return 0 if done.returncode == 0 else 1


def _keep(spec: str, loaded: Loaded, found: Mapping[str, Any]) -> str:
    """Write the rate beside the spec, as a fact that `learning_rate: auto` takes; returns the file."""
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
    """The file beside a spec that keeps the rate."""
    folder, name = os.path.split(spec)
    return os.path.join(folder, rates.file_name(name))
