"""Write a commented spec to start from. Its first line binds the JSON Schema, so that editors complete and check it.

A `.gitignore` keeps data and results out of git. For `--task custom` there is `own.py`, a model, data and a loss that
train within a minute, to be replaced by your own. A `.gitignore` or `own.py` that is there already stays as it is.
"""

from __future__ import annotations

import os
import re

import click

from ratc import resources
from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.console import say, would
from ratc.diagnostics import Diagnostic, did_you_mean
from ratc.workflow import findings, new_file

#: Each has a template of its name.
TASKS = ("segmentation", "detection", "classification", "custom")
#: The sample data that its settings fit.
_SAMPLES = {"segmentation": "brain", "detection": "shapes", "classification": "digits"}
#: What runs leave behind. Compiled folders belong into git.
IGNORED = """\
__pycache__/
/data/
/data-check/
/outputs/
"""


@declare(
    __doc__,
    [
        Argument(
            "file", "FILE", "the file to write (default: config.yaml)", type=PATH, required=False, default="config.yaml"
        ),
        click.Option(["--task"], default="segmentation", metavar="TASK", help=", ".join(TASKS)),
        options.form(),
        options.flag("--force", "overwrite an existing file"),
        options.dry_run(),
    ],
    {
        "ratc init": "write `config.yaml`, a spec for segmentation",
        "ratc init specs/boxes.yaml --task detection": "write a spec for detection to another file",
    },
)
def command(file: str, task: str, form: str, force: bool, dry_run: bool) -> int:
    """Exit status 1 when the file is there already or cannot be written."""
    if task not in TASKS:
        helps = did_you_mean(task, TASKS) or (f"use {' or '.join(TASKS)}",)
        findings.show(
            [Diagnostic("R206", f"this version has no spec for the task `{task}`", helps=helps)],
            "ratc init",
            form,
        )
        return 1
    from ratc.shell import render
    from ratc.yaml.write import scalar

    folder = os.path.dirname(file)
    text = render(f"{task}.yaml.j2", schema="experiment.schema.json", name=scalar(_name(folder)))
    beside = {"experiment.schema.json": resources.read("schemas", "experiment.schema.json").decode()}
    once = {".gitignore": IGNORED}
    if task == "custom":
        once["own.py"] = resources.read("templates", "own.py").decode()
    kept = [name for name in once if os.path.lexists(os.path.join(folder, name))]
    beside |= {name: content for name, content in once.items() if name not in kept}
    written = [file, *(os.path.join(folder, name) for name in beside)]
    otherwise = "name another file, or "
    problem = new_file.there(file, force, otherwise)
    if problem is None and not dry_run:
        problem = new_file.write(file, text, force, otherwise)
        for name, content in beside.items():
            problem = problem or new_file.write(os.path.join(folder, name), content, force=True)
    if problem is not None:
        findings.show([problem], "ratc init", form)
        return 1
    if dry_run:
        would("write", *written)
        return 0
    say(f"written: {', '.join(written[:-1])} and {written[-1]}")
    for name in kept:
        say(f"kept: {os.path.join(folder, name)}, which is there already")
    say(f"next: {_next_steps(file, task, os.path.join(folder, 'data'))}")
    return 0


def _next_steps(file: str, task: str, data: str) -> str:
    """Commands that lead to a training."""
    if task == "custom":
        return f"`ratc train {file} --trust`, which runs the code of own.py"
    if os.path.isdir(data):
        return f"`ratc train {file}`"
    trial = f" (or try it with `ratc sample-data {_SAMPLES[task]} {data}`)" if task in _SAMPLES else ""
    return f"edit data_dir{trial}, then `ratc train {file}`"


def _name(folder: str) -> str:
    """The folder's name, as an experiment may be called."""
    letters = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(os.path.abspath(folder or "."))).strip("-._")
    return letters[:100] or "experiment"
