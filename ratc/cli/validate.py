"""Check a spec against the schema and the rules, resolve it for a target, and look up the files and code that it names.

Nothing is run, traced or written: whether the model fits on its card, only `ratc compile` predicts.
"""

from __future__ import annotations

from ratc.cli import options
from ratc.cli.command import declare
from ratc.console import say
from ratc.workflow import findings, inputs
from ratc.workflow.request import CompileRequest
from ratc.workflow.validate import correct, has_gpus, validate


@declare(
    __doc__,
    [
        *options.spec(),
        options.target(),
        options.form(),
        options.flag("--fix", "correct mistyped keys and values of the wrong form in the file"),
        options.dry_run("show the corrections of --fix and write nothing"),
    ],
    {
        "ratc validate config.yaml": "report the mistakes of a spec",
        "ratc validate config.yaml --target slurm": "also check it for a Slurm job",
        "ratc validate config.yaml --fix": "correct mistyped keys",
    },
    request=options.request,
)
def command(request: CompileRequest, form: str, fix: bool, dry_run: bool) -> int:
    """Exit status 1 when there is an error."""
    refused = inputs.known_target(request.target)
    if refused:
        findings.show(refused, "ratc validate", form)
        return 1
    loaded = inputs.load(request)
    problems = correct(request, loaded, dry_run) if fix else ()
    if fix and not dry_run:
        loaded = inputs.load(request)
    if findings.show((*problems, *validate(loaded, request)), "ratc validate", form):
        return 1
    say(f"{request.spec}: valid")
    if loaded.settings is not None and has_gpus(loaded.settings):
        say("not checked: whether the model fits on its card, which `ratc compile` predicts")
    return 0
