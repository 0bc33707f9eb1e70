"""The evidence of a run that ended: its lock, its spec, its logs, and the scheduler's record of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ratc.diagnostics import Source, Span
from ratc.plan import Values
from ratc.scheduler.dialect import AccountingRecord

#: Characters of a finding's notes and helps that are read.
_LONGEST = 10_000
_REST = re.compile(r"^ {2,}(note|help): (.*)")
#: Accelerate and torchrun put the rank before what a process prints.
_RANK = r"(?:\[\w+\d+\]:[ \t]?)?"
_HEAD = re.compile(rf"^{_RANK}error\[(R\d{{3}})\]: (.*)", re.MULTILINE)
#: The last line of a traceback, by the name of its exception.
_EXCEPTION = re.compile(
    rf"^{_RANK}(?P<last>(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt)\b.*)$", re.MULTILINE
)
#: The same of an exception with any name, by the line of code above it.
_BELOW_CODE = re.compile(
    rf"^{_RANK}  File \"[^\"\n]+\", line \d+.*\n(?:{_RANK} {{4}}.*\n){{0,6}}{_RANK}(?P<last>[A-Za-z_][\w.]*(?:: .*)?)$",
    re.MULTILINE,
)
#: Exceptions that follow from the end of another process.
_FOLLOWS = re.compile(
    r"ChildFailedError|CalledProcessError|Dist\w+Error|RendezvousConnectionError|NCCL|nccl|gloo|by peer"
)


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
        """The places in the logs that a pattern is found at, log by log, the last of each first, one in a line."""
        wanted = re.compile(pattern, re.MULTILINE)
        for log in self.logs:
            yield from reversed(list(_found(log, wanted)))

    def first(self, *patterns: str) -> tuple[Span, re.Match[str]] | None:
        """The first of these places, of the first pattern that is found at all."""
        return next((found for pattern in patterns for found in self.lines(pattern)), None)

    @cached_property
    def raised(self) -> tuple[Span, ...]:
        """The last lines of tracebacks, in the order of `lines`. Those that follow from another process's end are left
        out.
        """
        return tuple(span for log in self.logs for span in _raised(log, (_EXCEPTION, _BELOW_CODE)))

    @cached_property
    def _ended(self) -> dict[str, int]:
        """The last line of each log's last traceback, by the name of the log; logs without one are left out."""
        return {log.name: spans[0].line for log in self.logs if (spans := _raised(log, (_BELOW_CODE,)))}

    def first_cause(self, *patterns: str) -> tuple[Span, re.Match[str]] | None:
        """As `first`, but for lines of errors that a program seems to have handled: they are not exceptions, and a
        traceback comes after them, or stands in another log.
        """
        places = (found for pattern in patterns for found in self.lines(pattern))
        return next((found for found in places if not self._is_handled(found[0])), None)

    def _is_handled(self, span: Span) -> bool:
        if _EXCEPTION.match(span.source.line(span.line)):
            return False
        here = self._ended.get(span.source.name)
        return here > span.line if here else bool(self._ended)

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


def _found(log: Source, pattern: re.Pattern[str]) -> Iterator[tuple[Span, re.Match[str]]]:
    number, at, before = 1, 0, 0
    for match in pattern.finditer(log.text):
        number += log.text.count("\n", at, match.start())
        at = match.start()
        if number != before:
            start = log.text.rfind("\n", 0, at) + 1
            yield place(log, number, at - start, match.end() - start), match
        before = number


def _raised(log: Source, patterns: Sequence[re.Pattern[str]]) -> list[Span]:
    found = {}
    for pattern in patterns:
        for span, match in _found(log, pattern):
            at = match.start("last")
            if not _FOLLOWS.search(match["last"]):
                start = log.text.rfind("\n", 0, at) + 1
                number = span.line + log.text.count("\n", match.start(), at)
                found[at] = place(log, number, at - start, match.end() - start)
    return [found[at] for at in sorted(found, reverse=True)]


def _findings(log: Source) -> Iterator[Finding]:
    for span, head in _found(log, _HEAD):
        parts: list[tuple[str, str]] = []
        for following in log.text[head.end() + 1 : head.end() + _LONGEST].split("\n"):
            rest = _REST.match(following)
            if rest:
                parts.append((rest[1], rest[2]))
            elif parts and following.startswith(" " * 8):
                parts[-1] = (parts[-1][0], f"{parts[-1][1]} {following.strip()}")
            else:
                break
        notes, helps = (tuple(text for kind, text in parts if kind == wanted) for wanted in ("note", "help"))
        yield Finding(head[1], head[2], span, notes, helps)
