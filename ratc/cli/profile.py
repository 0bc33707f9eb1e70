"""Show the memory of one training step: predicted, or measured on this machine's GPU for `ratc compile --facts`.

With --measure the very step that trains runs at two micro-batch sizes. -o FILE writes or extends a facts file;
compiling with it takes the micro-batch from the measurement, which is the way for models that cannot be traced.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from ratc.cli import options
from ratc.cli.command import PATH, declare
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.profile import profile
from ratc.workflow.request import CompileRequest


class _Sizes(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """Two micro-batch sizes, the smaller first."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value[0], value[1]
        parts = [int(part) for part in value.split(",") if part.strip().isdecimal()]
        if len(parts) != 2 or not 0 < parts[0] < parts[1]:
            self.fail(f"`{value}` is not a pair of sizes, the smaller first, such as 2,4", param, ctx)
        return parts[0], parts[1]


@declare(
    __doc__,
    [
        *options.spec(),
        options.form(),
        options.flag("--measure", "run the step on the GPU of this machine"),
        click.Option(
            ["-o", "--output", "facts_file"],
            metavar="FILE",
            type=PATH,
            help="facts file to write or extend (with --measure)",
        ),
        click.Option(
            ["--sizes"],
            type=_Sizes(),
            metavar="A,B",
            help="micro-batch sizes to measure (default: 2,4; smaller ones if these fail)",
        ),
        options.dry_run(traces=True),
    ],
    {
        "ratc profile config.yaml": "predict the memory of a step",
        "ratc profile config.yaml --measure -o facts.yaml": "measure it on the GPU of this machine, and add it to a "
        "file",
        "ratc compile config.yaml --facts facts.yaml": "compile with the measurement",
    },
    may_trust=True,
    request=options.request,
)
def command(
    request: CompileRequest,
    form: str,
    measure: bool,
    facts_file: str | None,
    sizes: tuple[int, int] | None,
    dry_run: bool,
) -> int:
    """Exit status 1 on errors: nothing fits, nothing can be traced, or there is no GPU to measure on."""
    if (facts_file or sizes) and not measure:
        print("ratc profile: -o and --sizes are for measurements\nhelp: add --measure", file=sys.stderr)
        return 2
    # Standard output is the table's.
    with FindingsPrinter("ratc profile", form, taken=True) as printer:
        return profile(request, measure, facts_file, sizes, dry_run, printer)
