"""Explain a code, or the source of a value.

`ratc explain R304` explains a code, `ratc explain spec.yaml training.batch_size` one value, down to the lines of spec
and facts that it was made from; `ratc explain compiled/x/slurm PATH` the same of a compiled folder. A PATH may be a
section, or the last part of a path.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

import click

from ratc.cli import options
from ratc.cli.command import Argument, FilePath, declare, words
from ratc.console import say
from ratc.workflow import codes
from ratc.workflow.explain import Asked, explain
from ratc.workflow.request import CompileRequest


class _CodeOrPath(FilePath):
    """A code, or the name of a file or folder."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Return the codes with this prefix, or else the shell's files."""
        known = [code for code in ("codes", *codes.names()) if incomplete and code.startswith(incomplete)]
        return words(known, incomplete) or super().shell_complete(ctx, param, incomplete)


@declare(
    __doc__,
    [
        *options.spec("CODE|SPEC|FOLDER", "a code such as R304, `codes`, a spec, or a compiled folder", _CodeOrPath()),
        Argument("path", "PATH", "path of a value, the last part of a path, or a section", required=False),
        options.target(),
        options.flag("--all", "show the whole plan as a table", "whole"),
        click.Option(["--point"], metavar="NAME", help="explain this point of a sweep, instead of the first"),
        options.form("text (default), json or markdown; github and sarif show only findings of the compilation"),
    ],
    {
        "ratc explain R304": "show the meaning of a code and the remedy",
        "ratc explain config.yaml training.precision": "show the reason of a value",
        "ratc explain compiled/demo/slurm --all": "show all values of a compiled folder",
    },
    request=options.request,
)
def command(request: CompileRequest, path: str | None, whole: bool, point: str | None, form: str) -> int:
    """Exit status 1 when the code or the path is not known, or the spec does not compile; 2 for options that do not go
    together.
    """
    spec = request.spec
    if not os.path.exists(spec):
        if spec == "codes":
            print("".join(f"{code}  {title}\n" for code, title in codes.titles().items()), end="")
            return 0
        if re.fullmatch(r"[Rr][0-9]{1,4}", spec):
            return _code(spec.upper(), form)
    return explain(request, Asked(path, whole, point, form))


def _code(code: str, form: str) -> int:
    """Print a code's page: as Markdown, or in JSON with its title."""
    titles = codes.titles()
    if code in titles:
        page = codes.page(code)
        tree = {"version": 1, "code": code, "title": titles[code], "page": page}
        print(page if form != "json" else json.dumps(tree, indent=2, ensure_ascii=False) + "\n", end="")
        return 0
    say(f"ratc explain: there is no code {code}")
    for other in codes.near(code, list(titles)):
        say(f"help: {other}  {titles[other]}")
    print("help: `ratc explain codes` lists all codes", file=sys.stderr)
    return 1
