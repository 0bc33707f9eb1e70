"""Mutations of valid texts, and the law that a parser of a stranger's text keeps: it ends in its time and memory, gives
a value or a coded diagnostic, never a traceback, and changes nothing outside of the folder.
"""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.places import TESTS

#: Reads an input; the second argument gives what it said on stderr.
Target = Callable[[Any, Callable[[], str]], None]
#: The inputs and the reader of each target, by name.
Targets = dict[str, tuple[st.SearchStrategy[Any], Target]]
#: Seconds that no input may take. A hang takes for ever; what a slow machine needs is far below.
LIMIT_S = 60
#: Bytes that reading one input may take beside what the process has.
MEMORY_BYTES = 2 * 2**30
#: What is put in the place of a token, or between two: each is made to break one kind of reader.
ODD = (
    "",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "\x1b]0;t\x07",
    "\u202e",
    "\u2028",
    "\ufeff",
    "\ud800",
    "'",
    '"',
    "\\",
    "`",
    "$(touch W)",
    "${",
    "#",
    "---",
    "...",
    "&a ",
    "*a",
    "!!python/object/apply:os.system [touch W]",
    "<<: *a",
    "? ",
    ": ",
    "- ",
    "|",
    ">",
    "%",
    "@",
    "{",
    "}",
    "[",
    "]",
    "[" * 2000,
    "{a: " * 500,
    "(" * 500,
    "null",
    "true",
    "no",
    "~",
    "-1",
    "0",
    "1e400",
    "-.inf",
    ".nan",
    "NaN",
    "Infinity",
    "0x10",
    "9" * 5000,
    "9223372036854775808",
    "1:59:59",
    "2001-99-99",
    "x" * 5000,
    "../../x",
    "/dev/zero",
    "/proc/self/environ",
    "::error::x",
    "<img src=x onerror=y>",
    "N/A",
    "UNLIMITED",
    "(null)",
    "gpu:h100:4(S:0-1)",
    "n[1-999999999]",
    "1.5G",
)
_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")


@st.composite
def mutated(draw: st.DrawFn, seeds: tuple[str, ...]) -> str:
    """A seed with some of its tokens and lines removed, doubled, swapped or replaced by what breaks readers."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        parts = text.splitlines(keepends=True) if draw(st.booleans()) else _TOKEN.findall(text)
        if not parts:
            return draw(st.sampled_from(ODD))
        first = draw(st.integers(0, len(parts) - 1))
        last = min(len(parts), first + draw(st.integers(1, 6)))
        how = draw(st.sampled_from(("replace", "insert", "remove", "double", "swap", "cut")))
        if how == "replace":
            parts[first:last] = [draw(st.one_of(st.sampled_from(ODD), st.text(max_size=5)))]
        elif how == "insert":
            parts.insert(first, draw(st.sampled_from(ODD)))
        elif how == "remove":
            del parts[first:last]
        elif how == "double":
            parts[first:last] *= draw(st.sampled_from((2, 3, 50)))
        elif how == "swap":
            other = draw(st.integers(0, len(parts) - 1))
            parts[first], parts[other] = parts[other], parts[first]
        else:
            del parts[first:]
        text = "".join(parts)[:200_000]
    return text


def texts(*seeds: str) -> st.SearchStrategy[bytes]:
    """Bytes for a parser: mostly mutations of the seeds, some raw text, some raw bytes."""
    encoded = st.one_of(mutated(seeds), mutated(seeds), mutated(seeds), st.text(max_size=60))
    return st.one_of(encoded.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60))


@contextmanager
def lawful(folder: Path) -> Iterator[None]:
    """Run what stands within in time and memory, and without effect on the folder's neighbours."""
    before = sorted(os.listdir(folder.parent))

    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"not at its end after {LIMIT_S} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
    assert sorted(os.listdir(folder.parent)) == before
    assert not list(folder.rglob("W")), "it has run something"


def command(main: Callable[[list[str]], int], words: list[str], err: Callable[[], str]) -> None:
    """Run a command; it ends with one of its statuses, and what is wrong with a file has a code."""
    status = main(words)
    said = err()
    assert status in (0, 1, 2), (words, status)
    assert "internal error" not in said, (words, said)
    assert "Span(" not in said, (words, said)
    assert "Traceback" not in said, (words, said)
    if status == 1 and words[0] not in ("diff", "check", "explain"):
        assert re.search(r"\bR\d{3}\b", said), (words, said)


def into(targets: Targets) -> Callable[[str, st.SearchStrategy[Any]], Callable[[Target], Target]]:
    """Return the decorator that enters a target under a name, with the inputs that it is tried with."""

    def target(name: str, strategy: st.SearchStrategy[Any]) -> Callable[[Target], Target]:
        def kept(run: Target) -> Target:
            targets[name] = strategy, run
            return run

        return kept

    return target


def recorded(*names: str) -> tuple[str, ...]:
    """Return the texts of files of the tests."""
    return tuple((TESTS / name).read_text() for name in names)


def write(name: str, data: bytes) -> str:
    """Write a file below the working folder, and return its name."""
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    Path(name).write_bytes(data)
    return name
