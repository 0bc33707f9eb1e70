"""Write a commented spec to start from. Its first line binds the JSON Schema, so that editors complete and check it."""

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
_SAMPLES = {"segmentation": "brain", "classification": "digits"}


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
    beside = os.path.join(folder, "experiment.schema.json")
    text = render(
        f"{task}.yaml.j2",
        schema="experiment.schema.json",
        name=scalar(_name(folder)),
    )
    otherwise = "name another file, or "
    if dry_run:
        problem = new_file.there(file, force, otherwise)
    else:
        schema = resources.read("schemas", "experiment.schema.json").decode()
        problem = new_file.write(file, text, force, otherwise) or new_file.write(beside, schema, force=True)
    if problem is not None:
        findings.show([problem], "ratc init", form)
        return 1
    if dry_run:
        would("write", file, beside)
        return 0
    say(f"written: {file} and {beside}")
    data = os.path.join(folder, "data")
    trial = f" (or try it with `ratc sample-data {_SAMPLES[task]} {data}`)" if task in _SAMPLES else ""
    edit = "" if os.path.isdir(data) else f"edit data_dir{trial}, then "
    say(f"next: {edit}`ratc train {file}`")
    return 0


def _name(folder: str) -> str:
    """The folder's name, as an experiment may be called."""
    letters = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(os.path.abspath(folder or "."))).strip("-._")
    return letters[:100] or "experiment"
