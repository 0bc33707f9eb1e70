"""A comparison as Markdown for a comment on a pull request."""

from __future__ import annotations

from ratc.comparison import sizes, words
from ratc.comparison.model import Change, Comparison
from ratc.comparison.order import Line, lines
from ratc.markup import code, escape
from ratc.spec.keys import Effect

#: The platforms cut long comments off; this many rows stay well below that.
_MOST = 100
_MARKS = {Effect.TRAINING: "🔴", Effect.RESUME: "🔴", Effect.MEMORY: "🟡", Effect.COST: "🟡"}


def markdown(comparison: Comparison) -> str:
    """Return a verdict, the sums, and a table in which `↳` marks consequences of the row above."""
    head = f"### `ratc diff` {code(comparison.old.name)} → {code(comparison.new.name)}\n"
    parts = [head, f"**{escape(' '.join(words.verdict(comparison)))}**\n"]
    parts += [f"- {escape(remark)}\n" for remark in comparison.remarks]
    parts += [
        f"- {escape(amount.what)}: {escape(amount.old or 'not known')} → {escape(amount.new or 'not known')}\n"
        for amount in comparison.amounts
    ]
    rows = [*map(_row, lines(comparison)), *map(_outside_row, comparison.outside_plan)]
    if rows:
        parts.append("\n| value | old | new | consequence | why |\n|---|---|---|---|---|\n")
        parts += rows[:_MOST]
    if comparison.sizes:
        names = ("nodes", *comparison.columns)
        parts.append(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}\n")
        parts += [f"| {' | '.join(map(escape, row))} |\n" for row in sizes.lines(comparison.sizes)]
    if len(rows) > _MOST:
        parts.append(f"\n… and {len(rows) - _MOST} more; `ratc diff` shows all.\n")
    return "".join(part if index else f"{part}\n" for index, part in enumerate(parts))


def _row(line: Line) -> str:
    change = line.change
    mark = "&nbsp;&nbsp;" * max(0, line.depth - 1) + "↳ " if line.depth else ""
    reasons = [f"{word} {escape(reason)}" for word, reason in words.reasons(line)]
    if line.also:
        reasons.append(escape(f"also from {words.other_causes(line)}"))
    if line.others:
        reasons.append(escape(words.others(line)))
    return _cells(f"{mark}{code(words.name(change))}", change, "; ".join(reasons))


def _outside_row(change: Change) -> str:
    return _cells(code(change.path), change, "")


def _cells(name: str, change: Change, why: str) -> str:
    old, new = (code(text) if text != words.ABSENT else text for text in words.shown(change))
    if change.formerly is not None:
        old = f"formerly {code(words.formerly(change))}"
    effects = ", ".join(
        f"{_MARKS[effect]} {words.LABELS[effect]}" if effect in _MARKS else words.LABELS[effect]
        for effect in change.effects
    )
    means = f"{effects}: {escape(change.meaning)}" if effects and change.meaning else effects
    return f"| {name} | {old} | {new} | {means} | {why} |\n"
