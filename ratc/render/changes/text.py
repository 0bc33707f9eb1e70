"""A comparison as text for a terminal: each change by a person, and below it its consequences."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.comparison import sizes, words
from ratc.comparison.model import Change, Comparison
from ratc.comparison.order import Line, lines
from ratc.markup import visible
from ratc.spec.keys import Effect

_RESET = "\x1b[0m"
_BOLD, _DIM, _OLD, _NEW = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m"
_COLOURS = {
    Effect.TRAINING: "\x1b[1;31m",
    Effect.RESUME: "\x1b[1;31m",
    Effect.MEMORY: "\x1b[33m",
    Effect.COST: "\x1b[33m",
    Effect.PLACEMENT: "\x1b[36m",
    Effect.COSMETIC: "\x1b[2m",
}
#: Points of an array that are listed; the counts are of all.
_MOST_POINTS = 8


def text(comparison: Comparison, colour: bool = False) -> str:
    """Return the whole comparison, with the summary at its end; empty if there is no difference."""
    if comparison.is_empty:
        return ""
    paint = _Paint(colour)
    head = [
        paint(_OLD, f"--- {comparison.old.name} ({comparison.old.target})"),
        paint(_NEW, f"+++ {comparison.new.name} ({comparison.new.target})"),
    ]
    blocks = [head, [paint(_BOLD, remark) for remark in comparison.remarks]]
    blocks += _trees(lines(comparison), paint)
    blocks += [list(_sizes(comparison, paint)), list(_outside_plan(comparison, paint)), list(_sums(comparison, paint))]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


class _Paint:
    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, code: str, words_: str) -> str:
        words_ = visible(words_)
        return f"{code}{words_}{_RESET}" if self._colour and words_ else words_


def _trees(told: list[Line], paint: _Paint) -> list[list[str]]:
    """One block for each thing that a person changed, with all that follows from it."""
    blocks: list[list[str]] = []
    for line in told:
        if line.depth == 0:
            blocks.append([])
        blocks[-1] += _line(line, paint)
    return blocks


def _line(line: Line, paint: _Paint) -> Iterator[str]:
    change, pad = line.change, "  " * line.depth
    effects = ", ".join(paint(_COLOURS[effect], words.LABELS[effect]) for effect in change.effects)
    arrow = paint(_DIM, "└ ") if line.depth else ""
    yield f"{pad}{arrow}{paint(_BOLD, words.name(change))}: {_old_and_new(change, paint)}" + (
        f"  [{effects}]" if effects else ""
    )
    pad += "    " if line.depth else "  "
    for word, reason in words.reasons(line):
        yield f"{pad}{paint(_DIM, f'{word:<4}')} {visible(reason)}"
    if line.also:
        yield f"{pad}{paint(_DIM, 'and')}  follows from {visible(words.other_causes(line))}, too"
    if line.others:
        yield f"{pad}{visible(words.others(line))}"
    if change.meaning:
        yield f"{pad}{paint(_DIM, change.meaning)}"


def _old_and_new(change: Change, paint: _Paint) -> str:
    old, new = words.shown(change)
    if change.formerly is not None:
        return visible(f"{new}, formerly {words.formerly(change)}")
    return f"{paint(_OLD, old)} → {paint(_NEW, new)}"


def _outside_plan(comparison: Comparison, paint: _Paint) -> Iterator[str]:
    points = [change for change in comparison.outside_plan if change.path.startswith("point ")]
    for change in comparison.outside_plan:
        if change not in points:
            yield f"{paint(_BOLD, change.path)}: {_old_and_new(change, paint)}  [{', '.join(words.labels(change))}]"
            yield f"  {paint(_DIM, change.meaning)}"
    for change in points[:_MOST_POINTS]:
        yield f"{paint(_BOLD, change.path)}: {_old_and_new(change, paint)}"
    if len(points) > _MOST_POINTS:
        yield f"… and {len(points) - _MOST_POINTS} more points"


def _sizes(comparison: Comparison, paint: _Paint) -> Iterator[str]:
    """The rows of an elastic plan, if one of them differs."""
    if not comparison.sizes:
        return
    table = [("nodes", *comparison.columns), *sizes.lines(comparison.sizes)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, row in enumerate(table):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield line if number else paint(_BOLD, line)


def _sums(comparison: Comparison, paint: _Paint) -> Iterator[str]:
    for amount in comparison.amounts:
        old, new = amount.old or "not known", amount.new or "not known"
        yield f"{paint(_BOLD, amount.what)}: {paint(_OLD, old)} → {paint(_NEW, new)}"
    yield paint(_BOLD, " ".join(words.verdict(comparison)))
