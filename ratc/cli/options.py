"""Options that commands share, each declared once."""

from __future__ import annotations

import os
import re
from typing import Any

import click

from ratc import layers
from ratc.cli.command import PATH, Argument, ConfigOption, FilePath, SpecOption, words
from ratc.workflow.findings import FORMS
from ratc.workflow.request import MAX_RATE, MAX_SAMPLES, CompileRequest

_FLAGS = ("debug",)
_FOLDERS = ("data-dir", "output-dir")


def flag(name: str, help: str, *names: str, **given: Any) -> click.Option:
    """An option without a value."""
    return click.Option([name, *names], is_flag=True, help=help, **given)


def target() -> click.Option:
    """``--target``, for commands that compile for a scheduler, too."""
    return click.Option(
        ["--target"], default="local", metavar="T", help="local (default), slurm or lsf", shell_complete=targets
    )


def targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Return the targets with this prefix, for a shell."""
    return words(("local", "slurm", "lsf"), incomplete)


def spec(metavar: str = "SPEC", help: str = "the YAML spec", kind: FilePath = PATH) -> list[click.Parameter]:
    """Return the spec's argument, and the options that override its values. `request` makes a request of them."""
    laid: list[click.Parameter] = [
        SpecOption(["--set", "assignments"], multiple=True, metavar="PATH=VALUE", help="set any value, by its path")
    ]
    for name, text in layers.SHORT_NAMES.items():
        names = [f"--{name}", _key(name)]
        if name in _FLAGS:
            laid.append(SpecOption(names, is_flag=True, flag_value="true", default=None, help=text))
        elif name in _FOLDERS:
            laid.append(SpecOption(names, metavar="DIR", type=PATH, help=text))
        else:
            laid.append(SpecOption(names, metavar="V", help=text))
    return [Argument("spec", metavar, help, type=kind), config(metavar), facts(), trust(), *laid]


def config(metavar: str) -> click.Option:
    """``--config``: for commands whose first argument is a spec."""
    return ConfigOption(
        ["--config"], metavar="FILE", type=PATH, expose_value=False, help=f"the spec, instead of `{metavar}`"
    )


def facts() -> click.Option:
    """``--facts``."""
    return click.Option(["--facts"], metavar="FILE", type=PATH, help="hardware facts, instead of this machine's")


def trust() -> click.Option:
    """``--trust``: for commands that may run code of a spec."""
    return flag("--trust", "allow this command to run the code that the spec names; see `ratc trust --help`")


def folder() -> click.Option:
    """``-o``: the folder for the compiled files."""
    return click.Option(["-o", "--output", "output"], metavar="DIR", type=PATH, help="folder for the compiled files")


def no_predict() -> click.Option:
    """``--no-predict``: for commands that compile in order to run the result."""
    text = "do not trace the model: a given micro-batch is not checked against the card, a missing one gets a default"
    return flag("--no-predict", text)


def dry_run(help: str = "list the files and processes; write and start nothing", traces: bool = False) -> click.Option:
    """``--dry-run``: for commands that write or start something; they print it by ``ratc.console.would``.

    If the command ``traces`` a model, it does so in a dry run, too, and keeps the trace: the files depend on it.
    """
    return flag("--dry-run", help + "; a model is traced, and its trace cached" if traces else help)


def form(help: str | None = None) -> click.Option:
    """``--format``: the form of the findings."""
    text = (
        "form of findings: text (default) on standard error; any other on standard output, if nothing else is "
        "printed there"
    )
    return click.Option(["--format", "form"], type=click.Choice(FORMS), default="text", help=help or text)


def samples() -> click.Option:
    """``--samples``: for commands that predict times."""
    text = "samples of an epoch, to predict time and cost of the whole training"
    return click.Option(["--samples", "epoch_samples"], type=click.IntRange(1, MAX_SAMPLES), metavar="N", help=text)


def loader_rate() -> click.Option:
    """``--loader-rate``: for commands that predict times."""
    return click.Option(
        ["--loader-rate"],
        type=_Number(MAX_RATE, f"a number above 0 and at most {MAX_RATE:g}"),
        metavar="N",
        help="samples per second of one loader process, as `ratc data check` measures them: the times then include "
        "waits for data",
    )


def timeout() -> click.Option:
    """``--timeout``: for commands that ask a scheduler."""
    text = "seconds to wait for each answer of the scheduler (default: 60)"
    return click.Option(
        ["--timeout"], type=_Number(3600, "a number of seconds up to an hour"), default=60.0, metavar="S", help=text
    )


class _Number(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """A decimal number above 0, up to ``most``; ``words`` say so."""

    name = "number"

    def __init__(self, most: float, words: str) -> None:
        self.most, self.words = most, words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(value)) or not 0 < float(value) <= self.most:
            self.fail(f"`{value}` is not {self.words}", param, ctx)
        return float(value)


def verify() -> click.Option:
    """``--verify``: for commands that make files."""
    return flag("--verify", "let Accelerate and DeepSpeed read their files, too; takes some seconds")


def request(given: dict[str, Any]) -> CompileRequest:
    """Return the request in the options; they are removed from ``given``."""
    short = {name: given.pop(_key(name)) for name in layers.SHORT_NAMES}
    return CompileRequest(
        given.pop("spec"),
        given.pop("target", "local"),
        given.pop("facts"),
        tuple(given.pop("assignments")),
        {name: value for name, value in short.items() if value is not None},
        not given.pop("no_predict", False),
        given.pop("output", None),
        variables=os.environ,
        samples=given.pop("epoch_samples", None),
        loader_rate=given.pop("loader_rate", None),
    )


def _key(name: str) -> str:
    return f"short_{name.replace('-', '_')}"
