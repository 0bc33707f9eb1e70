"""Parts of a stranger's script that are not shown, beyond sure secrets: prose that tells one, and values of options
that often are one. Stars for too much do no harm: the line's place is told, and the script is there.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from ratc.secrets.redact import readings, starred

#: Words of prose for a secret, none of them a part of a name, of a path or of an option.
_WORD = (
    r"(?<![\w./$-])(?:pass(?:words?|wort|wd|phrase|code)|pwd|pw|pin|kennwort|secret|token|credentials?"
    r"|(?:api|access|secret|private|license|licence)[ -]?key)(?![\w./(-])"
)
#: `the password of the data is hunter2`, `password: hunter2`.
_TOLD = re.compile(
    rf"(?i){_WORD}[\"']?[^\n.;]{{0,60}}?(?:\s(?:is|ist|was|are|lautet|sind)\s|[:=]>?|[-=]>)\s*"
    r"(?P<value>[^\s\"']*[^\s\"';`])"
)
#: `use token hunter2`: a word behind it that no dictionary has.
_BEHIND = re.compile(rf"(?i){_WORD}[\"']?\s+[\"']?(?P<value>(?=[^\s\"']*[0-9])(?=[^\s\"']*[^\W\d])[^\s\"']{{4,}})")
#: `-p VALUE` of a command, and options for keys of any sort; of a directive those with two dashes alone.
_SHORT = re.compile(r"(?<!\S)-[pP]\s+(?P<value>[^\s;&|]+)")
_KEY = re.compile(
    r"(?:(?<!\S)--?(?:[\w-]{0,40}key|licen[cs]e|mcs-label|pin)(?:=|\s+(?!-))|[?&](?:key|auth|code)=)(?P<value>[^\s;&|\"']+)"
)
#: Programs of which `-p` is a port, a partition, a path or a switch.
_HARMLESS = frozenset(
    (
        "srun",
        "sbatch",
        "salloc",
        "squeue",
        "sinfo",
        "sacct",
        "scontrol",
        "scancel",
        "bsub",
        "mkdir",
        "cp",
        "mv",
        "rsync",
        "ssh",
        "scp",
        "sftp",
        "tee",
        "ps",
        "test",
        "read",
        "python",
        "python3",
        "torchrun",
        "accelerate",
        "deepspeed",
        "mpirun",
        "mpiexec",
        "jsrun",
        "nvidia-smi",
        "tar",
        "install",
        "touch",
        "grep",
        "pip",
        "pip3",
        "conda",
        "mamba",
        "module",
        "ml",
        "export",
        "declare",
        "date",
        "time",
        "free",
        "df",
        "du",
        "ls",
        "sed",
        "awk",
        "which",
        "type",
        "ulimit",
        "make",
        "podman",
        "lsof",
        "pgrep",
    )
)
#: Letters before an option among which its program is looked for.
_LOOKED_AT = 400
#: What bash takes as it is: comments and texts in single quotes, and all but commands of texts in double quotes.
_TEXT = re.compile(
    r"""\\.|(?P<plain>(?:^|(?<=\s))\#[^\n]*|'[^']*')|(?P<double>"(?:\\.|[^"\\])*")"""
    r"""|<<-?[ \t]*(?P<quote>['"]?)(?P<end>[A-Za-z_]\w*)(?P=quote)""",
    re.MULTILINE | re.DOTALL,
)
#: Here-documents that are looked for, as the end of each may be far away.
_MOST_DOCUMENTS = 100
#: How far a value may be starred: stars in place of a sign of the shell would leave no command.
_OUTSIDE = re.compile(r"(?:\\.|(?!\$?[(`]|[)&|;<>]).)*", re.DOTALL)
_IN_DOUBLE = re.compile(r"(?:\\.|(?!\$\(|`).)*", re.DOTALL)
#: What is not a secret: a number, a path, a variable.
_PLAIN = re.compile(r"[0-9]{1,7}|[./~$\"']\S*|\w+/\S*")


def shown(text: str) -> str:
    """A script as it may be shown, column for column."""
    return starred(text, (span for reading in readings(text) for span in _spans(reading)))


def _texts(text: str) -> list[tuple[int, int, bool]]:
    """Return start and end of all texts in a script, in their order, and whether commands in them are run."""
    found, at, documents = [], 0, 0
    while (match := _TEXT.search(text, at)) is not None:
        at = match.end()
        if match["plain"] is not None or match["double"] is not None:
            found.append((*match.span(), match["double"] is not None))
        elif match["end"] is not None and documents < _MOST_DOCUMENTS:
            documents += 1
            start = text.find("\n", at)
            close = re.compile(rf"^[ \t]*{match['end']}[ \t]*$", re.MULTILINE).search(text, start + 1 or len(text))
            if close is not None:
                at = close.end()
                found.append((start, at, not match["quote"]))
    return found


def _spans(text: str) -> Iterator[tuple[int, int]]:
    texts = _texts(text)
    starts = [start for start, _, _ in texts]
    for pattern in (_TOLD, _BEHIND):
        for match in pattern.finditer(text):
            start, end = match.span("value")
            inside = texts[bisect_right(starts, start) - 1] if texts else (0, 0, False)
            if not inside[0] <= start < inside[1]:
                end = start + len(_OUTSIDE.match(match["value"])[0])  # type: ignore[index]
            elif inside[2]:
                end = start + len(_IN_DOUBLE.match(match["value"])[0])  # type: ignore[index]
            if start < end and not _is_plain(text[start:end]):
                yield start, end
    for match in _KEY.finditer(text):
        if not _is_plain(match["value"]):
            yield match.span("value")
    for match in _SHORT.finditer(text):
        # Of a longer line the beginning is not looked at: its program is not known then.
        start = text.rfind("\n", max(0, match.start() - _LOOKED_AT), match.start()) + 1
        start = start or max(0, match.start() - _LOOKED_AT)
        before = re.split(r"[;&|(`]", text[start : match.start()])[-1].split()
        program = next((word for word in before if "=" not in word), "").rpartition("/")[2]
        if not text.startswith("#", start) and program not in _HARMLESS and not _is_plain(match["value"]):
            yield match.span("value")


def _is_plain(value: str) -> bool:
    return _PLAIN.fullmatch(value) is not None
