"""The findings of a stage on its input: frozen values, no I/O.

A stage returns ``(output | None, tuple[Diagnostic, ...])``. How a diagnostic looks is up to :mod:`ratc.render`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache


class Severity(Enum):
    """The severity of a diagnostic. Only ``ERROR`` stops the pipeline."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@lru_cache(maxsize=4)
def _lines(text: str) -> list[str]:
    """The lines of a text. Thousands of findings ask for those of one file."""
    return text.split("\n")


@dataclass(frozen=True, slots=True)
class Source:
    """A named text that spans point into: a file, or an environment variable or an option (``is_file`` is false)."""

    name: str
    text: str = field(repr=False)
    is_file: bool = True

    def line(self, number: int) -> str:
        """The text of line ``number`` (from 1), without its end; empty beyond the end."""
        lines = _lines(self.text)
        return lines[number - 1].rstrip("\r") if 0 < number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """A range in a source. Lines and columns count from 1; the end column is exclusive."""

    source: Source
    line: int
    column: int
    end_line: int
    end_column: int

    @property
    def place(self) -> str:
        """``file:line:column``, or the bare name of a source that is not a file."""
        return f"{self.source.name}:{self.line}:{self.column}" if self.source.is_file else self.source.name


@dataclass(frozen=True, slots=True)
class Edit:
    """A text that replaces a span."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Fix:
    """A change of a spec. A certain one keeps the author's meaning, and ``validate --fix`` applies it; the others are
    for an editor to propose.
    """

    description: str
    edits: tuple[Edit, ...]
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding.

    The message stands alone: lower case, no final period, names in backticks. Notes give facts; only helps suggest.
    """

    code: str
    message: str
    span: Span | None = None
    notes: tuple[str, ...] = ()
    helps: tuple[str, ...] = ()
    severity: Severity = Severity.ERROR
    fix: Fix | None = None


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    """Whether any of the diagnostics stops the pipeline."""
    return any(d.severity is Severity.ERROR for d in diagnostics)


def did_you_mean(word: str, known: Iterable[str]) -> tuple[str, ...]:
    """A help naming the closest of the known words, or nothing when none is close."""
    close = closest(word, known)
    return (f"did you mean `{close}`?",) if close else ()


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the closest of the known words, or None if none is close: with at most one typing error per three letters
    of each part, around the given word, or made of its words. A word without dots can mean the last part of a path.
    """
    wanted = word.lower()
    candidates = {name.lower(): name for name in known}
    distances = dict[str, int]()
    for name in candidates:
        last = name if "." in word else name.rpartition(".")[2]
        if (distance := _typing_errors(wanted, last)) is not None:
            distances[name] = distance
    if distances:
        return candidates[min(distances, key=lambda name: distances[name])]
    within = [name for name in candidates if len(wanted) > 3 and wanted in name and len(wanted) * 2 > len(name)]
    if within:
        return candidates[within[0]]
    parts = set(re.split(r"[^a-z0-9]+", wanted))
    alike = [name for name in candidates if (other := set(re.split(r"[^a-z0-9]+", name))) <= parts or parts <= other]
    return candidates[alike[0]] if len(alike) == 1 and len(wanted) > 2 else None


def _typing_errors(wanted: str, name: str) -> int | None:
    """Return the typing errors between two words; None if there are more than one per three letters of a part."""
    parts, others = wanted.split("."), name.split(".")
    if len(parts) != len(others):
        parts, others = [wanted], [name]
    slips = 0
    for part, other in zip(parts, others, strict=True):
        most = max(len(part), 3) // 3
        # Words are at least as far apart as their lengths are: a word of a million letters is compared with none.
        if abs(len(part) - len(other)) > most or (distance := _distance(part, other)) > most:
            return None
        slips += distance
    return slips


def _distance(one: str, other: str) -> int:
    """Return the number of letters to insert, remove, replace or swap with a neighbour (optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for row, char in enumerate(one, 1):
        line = [row]
        for column, against in enumerate(other, 1):
            cost = min(last[column] + 1, line[-1] + 1, last[column - 1] + (char != against))
            if row > 1 and column > 1 and (char, one[row - 2]) == (other[column - 2], against):
                cost = min(cost, before[column - 2] + 1)
            line.append(cost)
        before, last = last, line
    return last[-1]
