"""Options that commands share."""

from __future__ import annotations

import argparse
import os

from ratc import layers
from ratc.workflow.request import CompileRequest

#: How findings can be told; each but text is a file of `ratc.render.findings`.
FORMS = ("text", "json", "github", "sarif", "markdown")
_FLAGS = ("debug",)
_METAVARS = {"data-dir": "DIR", "output-dir": "DIR"}


def add_spec_arguments(parser: argparse.ArgumentParser, target: bool = True) -> None:
    """The spec, the target, and every way to override a value."""
    parser.add_argument("spec", metavar="SPEC", help="the YAML spec")
    if target:
        parser.add_argument("--target", default="local", metavar="T", help="local (default), slurm or lsf")
    parser.add_argument("--facts", metavar="FILE", help="hardware facts, instead of this machine's")
    add_trust_argument(parser)
    group = parser.add_argument_group("values laid over the spec")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="assignments",
        help="any value, by its path",
    )
    for name in layers.SHORT_NAMES:
        if name in _FLAGS:
            group.add_argument(
                f"--{name}",
                action="store_const",
                const="true",
                dest=f"short_{name}",
                help=layers.SHORT_NAMES[name],
            )
        else:
            group.add_argument(
                f"--{name}",
                metavar=_METAVARS.get(name, "V"),
                dest=f"short_{name}",
                help=layers.SHORT_NAMES[name],
            )


def add_predict_argument(parser: argparse.ArgumentParser) -> None:
    """``--no-predict``: for commands that compile in order to run what comes out."""
    parser.add_argument(
        "--no-predict",
        action="store_true",
        help="trace no model: a given micro-batch is not checked against the card, an open one gets a default",
    )


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """``--trust``: for commands that may run code of a spec."""
    parser.add_argument(
        "--trust", action="store_true", help="run code that the spec names, for this command; see `ratc trust --help`"
    )


def add_format_argument(parser: argparse.ArgumentParser) -> None:
    """``--format``: how findings are told."""
    parser.add_argument(
        "--format",
        choices=FORMS,
        default="text",
        help="of what is found: text (default) on standard error, or another on standard output where that is free",
    )


def add_compile_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc compile``, which are those of the commands that files record, too."""
    add_spec_arguments(parser)
    add_format_argument(parser)
    add_predict_argument(parser)
    parser.add_argument("-o", "--output", metavar="DIR", help="folder of the artifacts")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit status 1 if the files there are not what the spec gives",
    )
    add_verify_argument(parser)


def add_verify_argument(parser: argparse.ArgumentParser) -> None:
    """``--verify``: for commands that make files."""
    parser.add_argument(
        "--verify", action="store_true", help="have Accelerate and DeepSpeed read their files, too: takes seconds"
    )


def request(args: argparse.Namespace, target: str | None = None, output: str | None = None) -> CompileRequest:
    """What the options ask for, or the same for ``target``; ``output`` a folder for artifacts."""
    named = {name: getattr(args, f"short_{name}") for name in layers.SHORT_NAMES}
    return CompileRequest(
        args.spec,
        target or args.target,
        args.facts,
        tuple(args.assignments),
        {name: value for name, value in named.items() if value is not None},
        not getattr(args, "no_predict", False),
        output,
        variables=os.environ,
    )
