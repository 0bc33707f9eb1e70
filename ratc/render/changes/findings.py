"""A comparison as findings, for forms that show them beside the lines of a pull request: one for each thing that a
person changed, with all that follows from it. Code: R440.
"""

from __future__ import annotations

from collections.abc import Iterator

from ratc.comparison import words
from ratc.comparison.model import Change, Comparison
from ratc.comparison.order import Line, lines
from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.spec.keys import Effect

#: Effects that a reviewer must look at; the others are notes.
_WEIGHTY = frozenset((Effect.TRAINING, Effect.RESUME, Effect.MEMORY, Effect.COST))


def findings(comparison: Comparison) -> list[Diagnostic]:
    """The findings in the order of the text; nothing if nothing differs."""
    trees: list[list[Line]] = []
    for line in lines(comparison):
        if line.depth == 0:
            trees.append([])
        trees[-1].append(line)
    return [*map(_of_tree, trees), *map(_of_outside, comparison.outside_plan)]


def _of_tree(tree: list[Line]) -> Diagnostic:
    root = tree[0]
    notes = [f"{'therefore ' if line.depth else ''}{text}" for line in tree for text in _notes(line)]
    effects = {effect for line in tree for effect in line.change.effects}
    return Diagnostic("R440", _old_and_new(root.change), _place(root), tuple(notes), severity=_severity(effects))


def _of_outside(change: Change) -> Diagnostic:
    return Diagnostic("R440", _old_and_new(change), severity=_severity(set(change.effects)))


def _notes(line: Line) -> Iterator[str]:
    """Yield the notes of a line: its own change unless it is the first, and the changes grouped with it."""
    if line.depth:
        yield _old_and_new(line.change)
    if line.others:
        yield words.others(line)


def _old_and_new(change: Change) -> str:
    old, new = words.shown(change)
    if change.formerly is not None:
        old = f"formerly `{words.formerly(change)}`"
    means = ", ".join(words.labels(change))
    means = f"{means}: {change.meaning}" if means and change.meaning else means
    return f"`{words.name(change)}` {old} → {new}" + (f" ({means})" if means else "")


def _place(line: Line) -> Span | None:
    """The line of the new side, if it has one."""
    value = (line.given or line.change).new
    return value.span if value is not None else None


def _severity(effects: set[Effect]) -> Severity:
    return Severity.WARNING if effects & _WEIGHTY else Severity.NOTE
