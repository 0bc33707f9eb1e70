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
from ratc.why import tracebacks
from ratc.why.tracebacks import Raised

#: Characters of a finding's notes and helps that are read.
_LONGEST = 10_000
_REST = re.compile(r"^ {2,}(note|help): (.*)")
#: What begins further lines of a note. More of it begins those of a stack.
_BELOW = " " * 8
#: Accelerate and torchrun put the rank before what a process prints.
RANK = r"(?:\[\w+\d+\]:[ \t]?)?"
_OF_A_RANK = re.compile(rf"^{RANK}")
#: A finding, also one that a program did not catch, and one behind a progress bar, whose line has no end.
_BAR = r"(?:[^\n]{0,300}?\[\d+:\d\d[^\n]{0,300}?\])?"
_HEAD = re.compile(rf"^{RANK}{_BAR}(?:[\w.]*RuntimeFinding: )?error\[(R\d{{3}})\]: (.*)", re.MULTILINE)
#: Errors that hardly a program goes on after, and words of one that does.
_SERIOUS = re.compile(r"(?i)out of memory|OutOfMemoryError|no space left|quota exceeded|read-only file|bus error")
_GOES_ON = re.compile(
    r"(?i)(?<![\w/.-])(?:warn(?:ing)?|info|debug|retry\w*|trying again|reduc\w+|skipp\w+|fall\w* back|ignor\w+"
    r"|trial \d+)(?![\w/-])"
)

#: Words of an error, in a line that is none of Slurm's launcher, and not the script's line on the logs.
ERROR = (
    r"^(?!srun: |slurmstepd)(?!.* (?:srun: |ratc: job )).*"
    r"(?:Error\b|Exception\b|(?i:\b(?:errors?|exceptions?|traceback|fail(?:ed|s|ure)?|kill(?:ed|ing)?|abort(?:ed|ing)?|fatal"
    r"|faults?|signal|dumped|panic|cannot|could not|can't|unable|refused|denied|not found|no such|invalid|illegal"
    r"|unrecognized|unknown|missing|usage|assert(?:ion)?|unreachable|timeout|timed out|terminated|nan|oom)\b))"
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

    @property
    def is_program(self) -> bool:
        """Whether the run was of a program of the user's, and not of ratc's own loop."""
        return "entrypoint.program" in self.lock

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
    def _raised(self) -> tuple[Raised, ...]:
        return tuple(one for log in self.logs for one in reversed(tracebacks.raised(log)))

    @cached_property
    def raised(self) -> tuple[Raised, ...]:
        """The exceptions, in the order of `lines`; those last that seem to follow from another one."""
        return tuple(sorted(self._raised, key=lambda one: one.is_late))

    @cached_property
    def _ended(self) -> dict[str, int]:
        """The last line of each log's last traceback, by the name of the log. Logs without one are left out, and
        exceptions that seem to follow from another one.
        """
        ends: dict[str, int] = {}
        for one in self._raised:
            if one.has_traceback and not one.is_late:
                ends.setdefault(one.span.source.name, one.span.line)
        return ends

    def first_cause(self, *patterns: str) -> tuple[Span, re.Match[str]] | None:
        """As `first`, but for lines of errors that a program seems to have handled."""
        places = (found for pattern in patterns for found in self.lines(pattern))
        return next((found for found in places if not self._is_handled(found[0])), None)

    def _is_handled(self, span: Span) -> bool:
        """Whether the line is not an exception, a traceback comes after it or stands in another log, and the error is
        one that programs go on after.
        """
        line = span.source.line(span.line)
        if tracebacks.is_named(line) or (_SERIOUS.search(line) and not _GOES_ON.search(line)):
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


def _findings(log: Source) -> Iterator[Finding]:
    for span, head in _found(log, _HEAD):
        parts: list[tuple[str, str]] = []
        stack: list[str] = []
        for line in log.text[head.end() + 1 : head.end() + _LONGEST].split("\n"):
            following = _OF_A_RANK.sub("", line, count=1)
            rest = _REST.match(following)
            if not rest and not (parts and following.startswith(_BELOW)):
                break
            if not rest and following.startswith(" ", len(_BELOW)):
                stack.append(following.strip())
                continue
            parts += _innermost(parts, stack)
            parts.append((rest[1], rest[2]) if rest else (parts[-1][0], following.strip()))
            stack = []
        parts += _innermost(parts, stack)
        notes, helps = (tuple(text for kind, text in parts if kind == wanted) for wanted in ("note", "help"))
        yield Finding(head[1], head[2], span, notes, helps)


def _innermost(parts: Sequence[tuple[str, str]], stack: Sequence[str]) -> list[tuple[str, str]]:
    """The user's innermost frame in a stack, or else the innermost, as one more part: the stack stands in the log.
    Lines that are none are parts as they are.
    """
    frames = [number for number, line in enumerate(stack) if line.startswith("File ")]
    if not frames:
        return [(parts[-1][0], line) for line in stack]
    own = [number for number in frames if not tracebacks.OF_OTHERS.search(stack[number])] or frames
    end = next((number for number in frames if number > own[-1]), len(stack))
    return [(parts[-1][0], " ".join(stack[own[-1] : end]))]


def last_line(evidence: Evidence) -> Span | None:
    """The last line of the first log that has one."""
    for log in evidence.logs:
        lines = log.text.rstrip("\n").split("\n")
        if lines[-1].strip():
            return place(log, len(lines), 0, len(lines[-1]))
    return None


def span_of(found: tuple[Span, re.Match[str]] | None) -> Span | None:
    """The place of what `Evidence.first` has found."""
    return found[0] if found else None
