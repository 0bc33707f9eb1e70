"""Predict what fits: the largest micro-batch and the predicted peak memory, over cards, precisions and ZeRO stages.

Nothing is run and no GPU is needed: the step of the spec's model is traced once for each precision and kind of card,
kept, and replayed at every card's cap. Cards default to the spec's, or to a few common ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import click

from ratc import files
from ratc.cli import options
from ratc.cli.command import PATH, declare
from ratc.console import say, would
from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.fitting import table
from ratc.fitting.question import Question
from ratc.markup import visible
from ratc.render import fit as render
from ratc.render.timeline import Drawing, svg
from ratc.units import size_text
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.fit import fit
from ratc.workflow.request import CompileRequest

_TABLES = {"text": render.text, "markdown": render.markdown, "json": render.as_json}


@declare(
    __doc__,
    [
        *options.spec(),
        options.target(),
        click.Option(
            ["--card", "cards"], multiple=True, metavar="CARD", help="a card from ratc's catalogue; repeatable"
        ),
        options.flag("--all-cards", "every whole NVIDIA card of ratc's catalogue"),
        click.Option(
            ["--in", "precisions"],
            multiple=True,
            type=click.Choice(["fp32", "bf16", "fp16"]),
            help="a precision; repeatable (default: the spec's precision, or the card's best and fp32)",
        ),
        options.samples(),
        options.loader_rate(),
        options.form(
            "form of the table: text (default), markdown or json; github and sarif show only what does not fit"
        ),
        click.Option(
            ["--plot"],
            metavar="FILE",
            type=PATH,
            help="draw the memory of one step on the first card to this file: .png, .html or .svg",
        ),
        options.dry_run("name the drawing that would be written, and write nothing", traces=True),
    ],
    {
        "ratc fit config.yaml": "predict for the card of the spec, or for a few common ones",
        "ratc fit config.yaml --card a100-80 --card h100 --in bf16": "predict for two cards",
        "ratc fit config.yaml --target slurm --samples 50000": "predict for the cluster that the spec names",
        "ratc fit config.yaml --plot step.html": "draw the memory of one step, too",
    },
    request=options.request,
)
def command(
    request: CompileRequest,
    cards: tuple[str, ...],
    all_cards: bool,
    precisions: tuple[str, ...],
    form: str,
    plot: str | None,
    dry_run: bool,
) -> int:
    """Exit status 1 on errors, and if nothing fits on any card."""
    if plot and (problem := _cannot_draw(plot)):
        say(f"ratc fit: cannot draw `{plot}`{problem}")
        return 2
    # A table has a form of its own; errors are text beside it.
    with FindingsPrinter("ratc fit", form if form not in _TABLES else "text") as printer:
        return _run(request, Question(cards, all_cards, precisions), form, plot, dry_run, printer)


def _run(
    request: CompileRequest, question: Question, form: str, plot: str | None, dry_run: bool, printer: FindingsPrinter
) -> int:
    fitted = fit(request, question, details=form == "text")
    if fitted.plan is None:
        printer.print(fitted.found)
        return 1
    if plot and fitted.drawing and dry_run:
        would("write", plot)
    elif plot and fitted.drawing:
        unwritten = _write(plot, _drawn(fitted.drawing, plot))
        if unwritten:
            printer.print((unwritten,))
            return 1
    printer.print(fitted.found)
    fits = any(row.micro_batch for row in fitted.rows)
    if form not in _TABLES:
        printer.print(_unfitting(fitted.rows, fits, fitted.span))
        return 0 if fits else 1
    print(_TABLES[form](fitted.rows, table.note(fitted.plan)), end="")
    if form == "text":
        print("".join(f"\n{visible(line)}" for line in fitted.details), end="\n" if fitted.details else "")
    return 0 if fits else 1


def _unfitting(rows: Sequence[render.Row], fits: bool, span: Span | None) -> Iterator[Diagnostic]:
    """Yield a finding for each row without a micro-batch; an error if nothing fits anywhere. Code: R317."""
    severity = Severity.WARNING if fits else Severity.ERROR
    for row in rows:
        if row.micro_batch is None:
            stage = "" if row.zero_stage is None else f", ZeRO stage {row.zero_stage}"
            needs = "an unknown size" if row.need_bytes is None else size_text(row.need_bytes, fine=True)
            note = f"it needs {needs}, and the card has {size_text(row.memory_bytes, fine=True)}"
            message = f"not one sample fits on {row.card} in {row.precision}{stage}"
            yield Diagnostic("R317", message, span, (note,), severity=severity)


def _cannot_draw(path: str) -> str | None:
    """Return the problem with the drawing's name or with drawing it here, and a help; None if there is none."""
    if not path.endswith((".png", ".svg", ".html")):
        return "\nhelp: name a file ending in .png, .html or .svg"
    if path.endswith(".png") and find_spec("matplotlib") is None:
        return ": matplotlib is not installed here\nhelp: `pip install 'ratc[runtime]'`, or name a file ending in .html"
    return None


def _drawn(drawing: Drawing, path: str) -> bytes:
    if path.endswith(".png"):
        # Imported here: only this needs matplotlib.
        from ratc.render.timeline.png import png

        return png(drawing)
    return (svg.html(drawing) if path.endswith(".html") else svg.svg(drawing)).encode()


def _write(path: str, content: bytes) -> Diagnostic | None:
    """Code: R403."""
    try:
        files.replace(path, content)
    except OSError as error:
        return Diagnostic("R403", f"cannot write `{os.path.normpath(path)}`: {error.strerror}")
    return None
