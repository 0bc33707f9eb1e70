"""Write a commented spec to start from. Its first line binds the JSON Schema, so that editors complete and check it."""

from __future__ import annotations

import argparse
import os
import re

from ratc import resources
from ratc.console import say
from ratc.diagnostics import Diagnostic, did_you_mean
from ratc.workflow import findings, options

#: Each has a template of its name.
TASKS = ("segmentation", "detection", "custom")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc init``."""
    parser.add_argument(
        "file", nargs="?", default="config.yaml", metavar="FILE", help="where to write it (config.yaml)"
    )
    parser.add_argument("--task", default="segmentation", metavar="TASK", help=", ".join(TASKS))
    options.add_format_argument(parser)
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 when the file is there already or cannot be written."""
    if args.task not in TASKS:
        helps = did_you_mean(args.task, TASKS) or (f"use {' or '.join(TASKS)}",)
        findings.show(
            [Diagnostic("R206", f"this version has no spec for the task `{args.task}`", helps=helps)],
            "ratc init",
            args.format,
        )
        return 1
    from ratc.shell import render
    from ratc.yaml.write import scalar

    folder = os.path.dirname(args.file)
    beside = os.path.join(folder, "experiment.schema.json")
    text = render(
        f"{args.task}.yaml.j2",
        schema="experiment.schema.json",
        name=scalar(_name(folder)),
    )
    try:
        os.makedirs(folder or ".", exist_ok=True)
        with open(args.file, "w" if args.force else "x", encoding="utf-8") as file:
            file.write(text)
        with open(beside, "wb") as file_schema:
            file_schema.write(resources.read("schemas", "experiment.schema.json"))
    except FileExistsError:
        problem = Diagnostic("R403", f"`{args.file}` is there already", helps=("name another file, or use `--force`",))
        findings.show([problem], "ratc init", args.format)
        return 1
    except OSError as error:
        findings.show([Diagnostic("R403", f"cannot write `{args.file}`: {error.strerror}")], "ratc init", args.format)
        return 1
    say(f"written: {args.file} and {beside}")
    say(f"next: edit data_dir, then `ratc train {args.file}`")
    return 0


def _name(folder: str) -> str:
    """The folder's name, as an experiment may be called."""
    letters = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(os.path.abspath(folder or "."))).strip("-._")
    return letters[:100] or "experiment"
