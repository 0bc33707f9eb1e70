"""R242-R245: an entrypoint names one program, its placeholders name values, and only the built-in loop has the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ratc import program
from ratc.diagnostics import Diagnostic, Edit, Fix, Severity, Span, closest, did_you_mean
from ratc.plan import Value, Values

#: Keys that only the built-in loop implements: a spec with one of them and an entrypoint is refused.
_ONLY_THE_LOOP = ("tuning", "tasks", "compression", "parallel", "training.deepspeed", "training.zero_stage")
#: A whole argument in quotes, or the value of an option in quotes.
_QUOTED = re.compile(r"""(-[^\s'"=]*=)?(['"]).*\2""", re.DOTALL)


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check an entrypoint; without one, check that no key is given that only programs have."""
    if not program.is_program(settings):
        launcher = settings["launcher"]
        if launcher.value in ("srun", "none"):
            message = (
                f"`launcher: {launcher.value}` needs an `entrypoint`; the built-in loop does not start in this way"
            )
            yield Diagnostic("R242", message, launcher.span, helps=("use `accelerate` or `torchrun`",))
        return
    yield from _one_program(settings)
    yield from _placeholders(settings)
    yield from _of_the_loop(settings)


def _one_program(settings: Values) -> Iterator[Diagnostic]:
    given = [name for name in program.KINDS if settings[f"entrypoint.{name}"].value is not None]
    helps = (f"give one of {', '.join(f'`{name}`' for name in program.KINDS)}",)
    if not given:
        yield Diagnostic("R242", "the `entrypoint` names no program", settings["entrypoint.args"].span, helps=helps)
    for name in given[1:]:
        message = f"`{name}` excludes `{given[0]}`: an `entrypoint` is one program"
        yield Diagnostic("R242", message, settings[f"entrypoint.{name}"].span, helps=helps)


def _placeholders(settings: Values) -> Iterator[Diagnostic]:
    for value, text in program.names(settings):
        for name in program.placeholders(text)[:1]:
            message = f"`${{{name}}}` stands in the name of the program, where no placeholders are filled in"
            instead = "write the whole name; placeholders work in `entrypoint.args` only"
            yield Diagnostic("R243", message, _where(value, f"${{{name}}}"), helps=(instead,))
    told: set[tuple[int, str]] = set()  # a misspelt name is marked once in a value, where it stands first
    for value, text in program.texts(settings):
        for name in program.placeholders(text):
            if name not in program.NAMES and (id(value), name) not in told:
                told.add((id(value), name))
                message = f"`${{{name}}}` is not a known placeholder"
                helps = did_you_mean(name, program.NAMES) or (f"the placeholders are {', '.join(program.NAMES)}",)
                helps = (*helps, f"for the text itself, write `$${{{name}}}`")
                place = _where(value, f"${{{name}}}")
                yield Diagnostic("R243", message, place, helps=helps, fix=_proposal(value, place, name))
        for written, name in program.without_braces(text):
            message = f"`{written}` is not filled in: a placeholder has two braces"
            helps = (f"write `${{{name}}}`; for the text itself, `${written}`",)
            yield Diagnostic("R243", message, _where(value, written), helps=helps, severity=Severity.WARNING)
        if _QUOTED.fullmatch(text):
            message = f"the argument `{text}` keeps its quotes: no shell reads it"
            span = _where(value, text)
            yield Diagnostic("R244", message, span, helps=("leave the quotes out",), severity=Severity.WARNING)
        elif text.startswith("-") and " " in text.strip() and program.placeholders(text):
            message = f"`{text}` is one argument, with a space in it: no shell splits it"
            parts = ", ".join(f'"{part}"' if program.placeholders(part) else part for part in text.split())
            helps = (f"write one entry for each argument: `[{parts}]`",)
            yield Diagnostic("R244", message, _where(value, text), helps=helps, severity=Severity.WARNING)


def _proposal(value: Value, place: Span | None, name: str) -> Fix | None:
    """Return the change to the closest placeholder, if the name is written once, not escaped and not in a comment."""
    close, span = closest(name, program.NAMES), value.span
    if close is None or place is None or span is None or place == span:
        return None
    lines = [span.source.line(number) for number in range(span.line, span.end_line + 1)]
    before = span.source.line(place.line)[: place.column - 1]
    if sum(line.count(f"${{{name}}}") for line in lines) > 1 or before.endswith("$") or "#" in before:
        return None
    return Fix(f"write `${{{close}}}`", (Edit(place, f"${{{close}}}"),), is_certain=False)


def _where(value: Value, text: str) -> Span | None:
    """The first place of a text within a value; the value's own if it is written in another way there."""
    span = value.span
    if span is None:
        return None
    for number in range(span.line, span.end_line + 1):
        start = span.column - 1 if number == span.line else 0
        end = span.end_column - 1 if number == span.end_line else None
        column = span.source.line(number).find(text, start, end) + 1
        if column:
            return Span(span.source, number, column, number, column + len(text))
    return span


def _of_the_loop(settings: Values) -> Iterator[Diagnostic]:
    refused: set[str] = set()
    for path in _ONLY_THE_LOOP:
        given = [name for name in settings if name == path or name.startswith(f"{path}.")]
        asked = next((settings[name] for name in given if settings.given(name) and settings[name].value), None)
        refused |= set(given)
        if asked is not None:
            message = f"`{path}` belongs to the built-in loop, which the `entrypoint` replaces"
            yield Diagnostic("R245", message, asked.span, helps=("remove it, or do it in the program",))
    rate = settings["training.learning_rate"]
    if rate.value == "auto":
        message = "`learning_rate: auto` was measured with the built-in loop, which the `entrypoint` replaces"
        yield Diagnostic("R245", message, rate.span, helps=("give a number",))
    checkpointing = settings["training.activation_checkpointing"]
    if checkpointing.value == "auto":
        message = "`activation_checkpointing: auto` chooses blocks, and ratc cannot wrap the modules of a program"
        yield Diagnostic("R245", message, checkpointing.span, helps=("remove it, or checkpoint in the program",))
        refused.add("training.activation_checkpointing")
    with_step, task = program.has_step(settings), settings["task_type"]
    if task.value == "multi":
        refused.add("task_type")
        message = "`task_type: multi` belongs to the built-in loop, which the `entrypoint` replaces"
        yield Diagnostic("R245", message, task.span, helps=("describe the step as one task, such as `custom`",))
    for path in settings:
        if path not in refused and not program.is_used(path, with_step) and settings.given(path):
            message = f"`{path}` has no effect: it belongs to the built-in loop, which the `entrypoint` replaces"
            helps = ("with `model.name` it describes the program's step",) if program.is_of_step(path) else ()
            yield Diagnostic("R207", message, settings[path].span, helps=helps, severity=Severity.WARNING)
