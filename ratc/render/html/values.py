"""A plan as sections of rows: every value with its origin or reason, and folded below it the values it follows from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ratc import units
from ratc.explain import Link, source, tree
from ratc.plan import Plan, Value
from ratc.secrets import excerpt
from ratc.secrets.redact import redact, shown
from ratc.units import counted

#: The section of the values without a section.
EXPERIMENT = "experiment"


@dataclass(frozen=True, slots=True)
class Step:
    """One link of a chain; ``why`` as in a row. ``anchor`` is the row of the same value, empty if there is none."""

    path: str
    anchor: str
    value: str
    why: str
    quoted: str
    is_above: bool
    below: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One value. ``head`` and ``name`` are its path in two parts; ``size`` says bytes or seconds for people.

    ``origin`` is default, given (by a person), found (by hardware or the cluster) or derived. ``why`` is the reason of
    a derived value, else its place of origin.
    """

    anchor: str
    head: str
    name: str
    value: str
    size: str
    origin: str
    why: str
    quoted: str
    steps: tuple[Step, ...]

    @property
    def folds(self) -> bool:
        """Whether the row has details to unfold."""
        return bool(self.quoted or self.steps)


@dataclass(frozen=True, slots=True)
class Section:
    """The values of one part of the plan."""

    name: str
    rows: tuple[Row, ...]

    @property
    def note(self) -> str:
        """The number of values, and the number that ratc derived."""
        worked_out = sum(row.origin == "derived" for row in self.rows)
        many = counted(len(self.rows), "value")
        return f"{many}, {worked_out} worked out" if worked_out else many


def sections(plan: Plan) -> list[Section]:
    """Every value of the plan once, the sections in the order in which the plan first names them."""
    grouped: dict[str, list[Row]] = {}
    for path in plan.values:
        section = path.partition(".")[0] if "." in path else EXPERIMENT
        grouped.setdefault(section, []).append(_row(plan, path))
    return [Section(name, tuple(rows)) for name, rows in grouped.items()]


def anchor(path: str) -> str:
    """Return the id of a path's row: characters other than letters, digits, dots and dashes become hexadecimal."""
    return "v." + re.sub(r"[^A-Za-z0-9.-]", lambda match: f"_{ord(match[0]):x}_", path)


def _row(plan: Plan, path: str) -> Row:
    link = tree(plan, path)
    assert link is not None
    head, dot, name = path.rpartition(".")
    value = link.value
    return Row(
        anchor(path),
        head + dot,
        name,
        shown(path, value.value),
        _size(path, value),
        _origin(value),
        _why(value),
        _quoted(value),
        tuple(_step(plan, below) for below in link.below),
    )


def _step(plan: Plan, link: Link) -> Step:
    value = link.value
    known = link.path in plan.values and plan.values[link.path] is value
    return Step(
        link.path,
        anchor(link.path) if known else "",
        shown(link.path, value.value),
        _why(value),
        _quoted(value),
        link.is_above,
        tuple(_step(plan, below) for below in link.below),
    )


def _origin(value: Value) -> str:
    kinds = {"spec": "given", "layer": "given", "hardware": "found", "cluster": "found"}
    return kinds.get(value.origin, value.origin)


def _why(value: Value) -> str:
    return redact((value.origin == "derived" and value.reason) or source(value))


def _quoted(value: Value) -> str:
    """Return the source line of a value."""
    if value.span is None or not value.span.source.is_file:
        return ""
    return excerpt.line(value.span.source, value.span.line).strip()


def _size(path: str, value: Value) -> str:
    number = value.value
    if isinstance(number, bool) or not isinstance(number, int):
        return ""
    if re.search(r"_bytes(_|$)", path):
        return units.size_text(number)
    return units.duration(number) if path.endswith("_seconds") and number >= 60 else ""


def count(found: Iterable[Section]) -> int:
    """Return the number of values in all sections."""
    return sum(len(section.rows) for section in found)
