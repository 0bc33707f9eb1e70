"""Finds the exceptions that a log shows: by the frames above them, or by their names alone if there are none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ratc.diagnostics import Source, Span

#: A frame, and the text before it: a rank, a label, a time, the bar of a group of exceptions.
FRAME = re.compile(r'^(?P<before>.{0,120}?)  File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<name>.*))?\r?$')
#: Files that are not the user's own.
OF_OTHERS = re.compile(r"(?:site|dist)-packages|/lib/python3|<frozen|ratc_runtime/")
#: Lines below a frame that are looked at for the next one or for the exception.
_LONGEST = 60
#: An exception that is known by its name. Accelerate and torchrun put the rank before what a process prints.
_NAMED = re.compile(
    r"^(?:\[\w+\d+\]:[ \t]?)?(?P<last>(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt)\b.*)$"
)
#: The line below the last frame, whatever the exception is called.
_LAST = re.compile(r"[A-Za-z_][\w.<>]* ?(?::(?: .*)?|\(.*|)\r?$")
_CLOCK = re.compile(r"\d\d:\d\d")
#: Exceptions that the end of another process causes: they are left out.
_FOLLOWS = re.compile(
    r"ChildFailedError|CalledProcessError|Dist\w{1,40}Error|RendezvousConnectionError|NCCL|nccl|gloo|by peer"
)
#: Exceptions that mostly follow from another one, and count if there is no other.
_LATE = re.compile(
    r"KeyboardInterrupt|SystemExit|SignalException|SIGTERMException|TrainingFailedError|[Bb]roken pipe"
    r"|Rendezvous\w{1,40}Error|socket has timed out|waiting for clients"
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
    found = {number: (column, late, True) for number, column, late in (*_below_frames(lines), *_below_boxes(lines))}
    for number, line in enumerate(lines):
        if number not in found and ("Err" in line or "Exc" in line or "Int" in line) and (match := _NAMED.match(line)):
            found[number] = (match.start("last"), False, False)
    return [
        Raised(Span(log, number + 1, column + 1, number + 1, len(lines[number].rstrip("\r")) + 1), has, late or seems)
        for number, (column, late, has) in sorted(found.items())
        if not _FOLLOWS.search(lines[number], column)
        for seems in (_LATE.search(lines[number], column) is not None,)
    ]


def _below_frames(lines: Sequence[str]) -> Iterator[tuple[int, int, bool]]:
    """Yield the index and column of each traceback's last line, and whether Python ignored the exception."""
    ignored = stack = False
    for number, line in enumerate(lines):
        if "(most recent call last)" in line:
            ignored = number > 0 and "Exception ignored" in lines[number - 1]
            stack = "Stack (most" in line
        frame = FRAME.match(line) if 'File "' in line else None
        if frame is None or stack:
            continue
        before = frame["before"]
        for below in range(number + 1, min(number + _LONGEST, len(lines))):
            text = lines[below]
            column = _column(text, before)
            if column is None or not text[column:].strip():
                continue
            if FRAME.match(text):
                break
            if text[column] not in " \t|":
                if _goes_on(lines, number, below, before):
                    continue
                if _LAST.match(text, column):
                    yield below, column, ignored
                break


def _goes_on(lines: Sequence[str], number: int, below: int, before: str) -> bool:
    """Whether a line below a frame is of another process: the traceback's next frame, or the frame's code, follows."""
    following = [one.removeprefix(before) for one in lines[below + 1 : below + 3] if one.startswith(before)]
    if following and below == number + 1 and following[0].startswith("    "):
        return True
    frame = next((index for index, one in enumerate(following) if FRAME.match(one)), None)
    return frame is not None and not any("most recent call last" in one for one in following[:frame])


def _below_boxes(lines: Sequence[str]) -> Iterator[tuple[int, int, bool]]:
    """Yield the same of the tracebacks that rich draws, in a box, which a logger may indent."""
    column = -1
    for number, line in enumerate(lines):
        if "Traceback (most recent call last)" in line and "╭" in line[:120]:
            column = line.index("╭")
        elif column >= 0 and line.startswith("╰", column):
            below = lines[number + 1] if number + 1 < len(lines) else ""
            if not below[:column].strip() and _LAST.match(below, column):
                yield number + 1, column, False
            column = -1


def _column(text: str, before: str) -> int | None:
    """Return the index behind a rank, a label or a time; None for a line of another process."""
    if text.startswith(before):
        return len(before)
    if _CLOCK.search(before) and re.sub(r"\d+", "0", text[: len(before)]) == re.sub(r"\d+", "0", before):
        return len(before)
    return None
