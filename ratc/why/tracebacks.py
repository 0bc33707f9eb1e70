"""Finds the exceptions that a log shows: by their tracebacks, or by their names alone if a log was cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ratc.diagnostics import Source, Span

_TITLE = "Traceback (most recent call last)"
#: Lines of a traceback that are looked at for its end.
_LONGEST = 400
#: Characters before a traceback: a rank, a label, a time.
_WIDEST = 200
#: An exception that is known by its name. Accelerate and torchrun put the rank before what a process prints.
_NAMED = re.compile(
    r"^(?:\[\w+\d+\]:[ \t]?)?(?P<last>(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt)\b.*)$", re.MULTILINE
)
#: The last line of a traceback, whatever the exception is called.
_LAST = re.compile(r"[A-Za-z_][\w.]* ?(?::(?: .*)?|\(.*|)\r?$")
#: The lines before it: code, and the frames of rich and of groups of exceptions.
_INSIDE = re.compile(r"\s*$|[ \t|+│┃╭╰]")
_CLOCK = re.compile(r"\d\d:\d\d")
#: Exceptions that the end of another process causes: they are left out.
_FOLLOWS = re.compile(
    r"ChildFailedError|CalledProcessError|Dist\w+Error|RendezvousConnectionError|NCCL|nccl|gloo|by peer"
)
#: Exceptions that mostly follow from another one, and count if there is no other.
_LATE = re.compile(
    r"KeyboardInterrupt|SystemExit|SignalException|Rendezvous\w+Error|TrainingFailedError|[Bb]roken pipe|timed out"
)


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception in a log: its line, if a traceback ends with it, and if it probably follows from another one."""

    span: Span
    has_traceback: bool
    is_late: bool


def is_named(line: str) -> bool:
    """Whether a line is an exception by its name."""
    return _NAMED.match(line) is not None


def raised(log: Source) -> list[Raised]:
    """Return the exceptions of a log in their order, without those that another process's end causes."""
    lines = log.text.split("\n")
    found = {number: (column, late, True) for number, column, late in _ends(lines)}
    for number, line in enumerate(lines):
        if number not in found and (match := _NAMED.match(line)):
            found[number] = (match.start("last"), False, False)
    return [
        Raised(Span(log, number + 1, column + 1, number + 1, len(lines[number].rstrip("\r")) + 1), has, late or seems)
        for number, (column, late, has) in sorted(found.items())
        if not _FOLLOWS.search(lines[number], column)
        for seems in (_LATE.search(lines[number], column) is not None,)
    ]


def _ends(lines: Sequence[str]) -> Iterator[tuple[int, int, bool]]:
    """Yield the index and column of each traceback's last line, and whether Python ignored the exception."""
    for number, line in enumerate(lines):
        at = line.find(_TITLE)
        if not 0 <= at <= _WIDEST:
            continue
        before = line[:at].removesuffix("Exception Group ")
        ignored = number > 0 and "Exception ignored in" in lines[number - 1]
        for following in range(number + 1, min(number + _LONGEST, len(lines))):
            text = lines[following]
            if _TITLE in text:
                break
            column = _column(text, before)
            if column is None or _INSIDE.match(text, column):
                continue
            if _LAST.match(text, column):
                yield following, column, ignored
            break


def _column(text: str, before: str) -> int | None:
    """Return the index behind a rank, a label or a time; None for a line of another process."""
    if text.startswith(before):
        return len(before)
    if _CLOCK.search(before) and re.sub(r"\d", "0", text[: len(before)]) == re.sub(r"\d", "0", before):
        return len(before)
    return None if re.search(r"\w", before) else 0
