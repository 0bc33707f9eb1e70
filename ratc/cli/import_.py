"""Read configurations of other tools and write a spec, with a list of the settings that it could not carry over.

Taken are the original framework's YAML, Accelerate's YAML, DeepSpeed's JSON and simple sbatch and bsub scripts; several
files make one spec, and the first that says something counts. Exit status 1 if nothing was written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from ratc import compiler
from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.compiler import File, Inputs
from ratc.console import say, would
from ratc.diagnostics import Diagnostic, has_errors
from ratc.importers import accelerate, batch, deepspeed, detect, merge, specification, unified
from ratc.importers.model import Item
from ratc.workflow import findings
from ratc.workflow.read import read

_READERS = {"unified": unified.read, "accelerate": accelerate.read, "deepspeed": deepspeed.read}


@declare(
    __doc__,
    [
        Argument(
            "files",
            "FILE",
            "files to import; if two disagree, the first counts",
            type=PATH,
            nargs=-1,
            required=True,
        ),
        click.Option(
            ["-o", "--output"], default="-", metavar="SPEC", type=PATH, help="the spec to write; - is standard output"
        ),
        click.Option(["--from", "kind"], metavar="KIND", help=f"the kind of the files: {', '.join(detect.KINDS)}"),
        options.form(),
        options.flag("--force", "write over a file that is there"),
        options.dry_run(),
    ],
    {
        "ratc import job.sbatch ds_config.json": "see the spec that these make together",
        "ratc import accelerate.yaml -o config.yaml": "write it",
    },
)
def command(files: tuple[str, ...], output: str, kind: str | None, form: str, force: bool, dry_run: bool) -> int:
    """Exit status 1 where a file cannot be imported or the spec not be written."""
    items: list[Item] = []
    for name in files:
        read, found = _read(name, kind, alone=len(files) == 1)
        if read is None:
            findings.show(found, "ratc import", form, output == "-")
            return 1
        items += read
    text, said = specification.write(merge.merge(items), files)
    problem = _write(output, text, force, dry_run) if output != "-" else None
    findings.show((problem,) if problem else said, "ratc import", form, output == "-")
    if output == "-":
        sys.stdout.write(text)
    return 1 if problem else 0


def _read(name: str, asked: str | None, alone: bool) -> tuple[Sequence[Item] | None, tuple[Diagnostic, ...]]:
    file, problem = read(name, named=True)
    if file is None:
        return None, (problem,) if problem else ()
    kind, document, found = detect.kind(name, file.data, asked)
    if kind is None:
        return None, found
    if document is None:
        return batch.read(kind, name, file.data.decode("utf-8", errors="replace")), ()
    if kind == "unified" and alone and asked is None and _is_spec(file):
        helps = ("use it as it is; `--from unified` imports it anyway",)
        return None, (
            Diagnostic("R431", f"`{name}` is a spec that ratc takes already", document.root.span, helps=helps),
        )
    return _READERS[kind](document), ()


def _is_spec(file: File) -> bool:
    settings, found = compiler.analyse(Inputs(file))
    return settings is not None and not has_errors(found)


def _write(path: str, text: str, force: bool, dry_run: bool) -> Diagnostic | None:
    try:
        if dry_run:
            if os.path.lexists(path) and not force:
                raise FileExistsError
            would("write", path)
            return None
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return Diagnostic("R403", f"`{path}` is there already", helps=("`--force` writes over it",))
    except OSError as error:
        return Diagnostic("R403", f"cannot write `{path}`: {error.strerror}")
    say(f"written: {os.path.relpath(path)}")
    return None
