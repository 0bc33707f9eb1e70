"""The evidence of a run that ended: its lock, its spec, its logs, and the scheduler's record of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ratc.diagnostics import Source, Span
from ratc.plan import Values
from ratc.scheduler.dialect import AccountingRecord

_HEAD = re.compile(r"^error\[(R\d{3})\]: (.*)")
_REST = re.compile(r"^ {2,}(note|help): (.*)")


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding of the runtime's or of a script's in a log, as it was printed."""

    code: str
    message: str
    span: Span
    notes: tuple[str, ...]
    helps: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """All that a cause can be read from.

    ``logs`` are those of the latest start: of its nodes, the first node's first, then the job's own. ``records`` are
    the scheduler's, the latest start last. ``results`` and ``epochs`` are the content of the files of these names,
    ``stopped`` that of `STOPPED`, and ``checkpoint`` the name of the newest one: empty if there is none. ``settings``
    are the values of the spec, with their places.
    """

    lock: Values
    logs: tuple[Source, ...] = ()
    records: tuple[AccountingRecord, ...] = ()
    job: str | None = None
    output: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
    epochs: tuple[Mapping[str, Any], ...] = ()
    stopped: str = ""
    is_done: bool = False
    checkpoint: str = ""
    settings: Values | None = None

    @property
    def record(self) -> AccountingRecord | None:
        """The scheduler's record of the latest start."""
        return self.records[-1] if self.records else None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """The findings in the logs, in their order."""
        return tuple(finding for log in self.logs for finding in _findings(log))

    def lines(self, pattern: str) -> Iterator[tuple[Span, re.Match[str]]]:
        """The places in the logs that a pattern is found at, log by log, the last of each first."""
        for log in self.logs:
            for number, text in reversed(list(enumerate(log.text.split("\n"), 1))):
                if match := re.search(pattern, text):
                    yield place(log, number, match.start(), match.end()), match

    def first(self, *patterns: str) -> tuple[Span, re.Match[str]] | None:
        """The first of these places, of the first pattern that is found at all."""
        return next((found for pattern in patterns for found in self.lines(pattern)), None)

    def at(self, path: str) -> str:
        """The place in the spec that gives a value, `config.yaml:12:3`; the key alone if the spec leaves it open."""
        if self.settings is not None and path in self.settings and self.settings.given(path):
            span = self.settings[path].span
            if span is not None:
                return f"{span.place}: `{path}`"
        return f"`{path}`"


def place(log: Source, line: int, start: int, end: int) -> Span:
    """Part of a line of a log; columns count from 0."""
    return Span(log, line, start + 1, line, max(start, end) + 1)


def _findings(log: Source) -> Iterator[Finding]:
    lines = log.text.split("\n")
    for number, text in enumerate(lines, 1):
        # Accelerate and torchrun put the rank before what a process prints.
        text = re.sub(r"^\[\w+\d+\]:\s?", "", text)
        head = _HEAD.match(text)
        if head is None:
            continue
        parts: list[tuple[str, str]] = []
        for following in lines[number : number + 40]:
            rest = _REST.match(following)
            if rest:
                parts.append((rest[1], rest[2]))
            elif parts and following.startswith(" " * 8):
                parts[-1] = (parts[-1][0], f"{parts[-1][1]} {following.strip()}")
            else:
                break
        notes, helps = (tuple(text for kind, text in parts if kind == wanted) for wanted in ("note", "help"))
        yield Finding(head[1], head[2], place(log, number, 0, len(lines[number - 1])), notes, helps)
