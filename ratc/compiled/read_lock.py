"""Reads a compiled folder: its lock, the values with their comments, and the command that made them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ratc import __version__, files
from ratc.diagnostics import Diagnostic
from ratc.plan import Value, Values
from ratc.targets import job, lock
from ratc.yaml.parse import MAX_BYTES, Document, Node, parse

#: Bytes of a table of points that are read.
_MOST = 64 << 20
#: Bytes from which it is known whether a file of another name is a lock: the command in its head may be long.
_HEAD = 16384
_LOCK = re.compile(rb"^[\"']?lock_version[\"']?\s*:", re.MULTILINE)
_AGAIN = re.compile(r"^# Again, from this folder: (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A lock read from a file.

    ``values`` are the lock's, each with its comment as the reason and its place in the lock. ``words`` is the command
    in the lock's head, to be run from ``folder``. ``points`` are the values of an array's points on one line, by name;
    ``point_locks`` the digests of their own locks; ``point`` is the name if it is the lock of a point.
    """

    path: str
    document: Document
    values: Values
    words: str
    points: Mapping[str, str] = field(default_factory=dict)
    point_locks: Mapping[str, str] = field(default_factory=dict)
    point: str = ""

    @property
    def folder(self) -> str:
        """The folder of the lock."""
        return os.path.dirname(self.path) or "."

    @property
    def target(self) -> str:
        """The target that it was compiled for."""
        return str(self.head_value("target") or "local")

    @property
    def ratc_version(self) -> str:
        """The ratc that compiled it."""
        return str(self.head_value("ratc_version") or "")

    @property
    def inputs(self) -> dict[str, str]:
        """Digests by path from the spec's folder."""
        node = self.document.root.find(("inputs",))
        table = node.value if node and isinstance(node.value, dict) else {}
        return {key: str(child.value) for key, child in table.items()}

    def head_value(self, key: str) -> object:
        """Return a bare value of the lock's head, or None."""
        node = self.document.root.find((key,))
        return node.value if node else None

    @property
    def shared_folder(self) -> str:
        """The folder that the recorded command is run from; for a point that of its array."""
        return os.path.dirname(self.document.root.span.source.name)


def is_compiled(path: str) -> bool:
    """Whether a path is a compiled folder, a folder of such folders, or a lock, under whatever name."""
    if os.path.isdir(path):
        return bool(_locks(path))
    if not os.path.isfile(path):
        return False
    try:
        with files.open_regular(path) as file:
            return os.path.basename(path) == lock.NAME or is_lock(file.read(_HEAD))
    except OSError:
        return os.path.basename(path) == lock.NAME


def is_lock(data: bytes) -> bool:
    """Whether the beginning of a file is that of a lock."""
    return _LOCK.search(data[:_HEAD]) is not None


def read(path: str) -> tuple[Compiled | None, tuple[Diagnostic, ...]]:
    """The lock at a path: a compiled folder, a point of an array, or a lock itself. Codes: R00x, R422, R428."""
    if os.path.isdir(path):
        found = _locks(path)
        if not found:
            helps = ("name a folder that `ratc compile` wrote, or a spec",)
            return None, (
                Diagnostic("R422", f"`{path}` holds no {lock.NAME}: it is not a compiled folder", helps=helps),
            )
        if len(found) > 1:
            helps = (f"name one of them: {', '.join(os.path.dirname(name) for name in found[:4])}",)
            return None, (Diagnostic("R422", f"`{path}` holds {len(found)} compiled folders", helps=helps),)
        path = found[0]
    return parsed(path)


def parsed(path: str, data: bytes | None = None) -> tuple[Compiled | None, tuple[Diagnostic, ...]]:
    """Parse the lock at a path; ``data`` replaces the file's content. Codes: R00x, R422, R428."""
    document, said = read_lock(path, data)
    if document is None:
        return None, said
    shared = document.root.find(("shared",))
    if shared is not None:
        return _point(path, document, os.path.normpath(os.path.join(os.path.dirname(path), "..", "..", lock.NAME)))
    points, digests = _points(os.path.dirname(path))
    return Compiled(path, document, Values(dict(_values(document))), _command(document), points, digests), ()


def read_lock(path: str, data: bytes | None = None) -> tuple[Document | None, tuple[Diagnostic, ...]]:
    """A lock's document. Codes: R00x; R422 for another file, R428 if its form is that of a newer ratc."""
    if data is None:
        try:
            with files.open_regular(path) as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            return None, (Diagnostic("R001", f"cannot read `{path}`: {error.strerror}"),)
    document, found = parse(path, data)
    if document is None:
        return None, found
    version = document.root.find(("lock_version",))
    if version is None or not isinstance(version.value, int):
        helps = ("name a folder that `ratc compile` wrote, or a spec",)
        return None, (*found, Diagnostic("R422", f"`{path}` is not a lock of ratc", helps=helps))
    if version.value <= lock.VERSION:
        return document, found
    by = document.root.find(("ratc_version",))
    message = f"`{path}` is a lock of version {version.value}, from a newer ratc"
    note = f"this is ratc {__version__}, which knows locks up to version {lock.VERSION}"
    note += f"; the lock is of ratc {by.value}" if by else ""
    return None, (*found, Diagnostic("R428", message, version.span, (note,), ("use the version of ratc that made it",)))


def command(text: str) -> str:
    """Return the command in the head of one of ratc's files; "" if there is none."""
    match = _AGAIN.search(text)
    return match[1] if match else ""


def _locks(folder: str) -> list[str]:
    """The folder's own lock, or those of the folders in it and of the targets in those."""
    own = os.path.join(folder, lock.NAME)
    if os.path.isfile(own):
        return [own]
    found: list[str] = []
    for depth in (1, 2):
        if not found:
            found = sorted(_below(folder, depth))
    return found


def _below(folder: str, depth: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and depth > 1:
                yield from _below(entry.path, depth - 1)
            elif entry.is_dir() and os.path.isfile(os.path.join(entry.path, lock.NAME)):
                yield os.path.join(entry.path, lock.NAME)


def _point(path: str, own: Document, shared_path: str) -> tuple[Compiled | None, tuple[Diagnostic, ...]]:
    """Return one point of an array: the shared values of all points, with its own over them."""
    shared, found = read_lock(shared_path)
    if shared is None:
        return None, found
    values = {**dict(_values(shared)), **dict(_values(own))}
    name = own.root.find(("point",))
    return Compiled(path, shared, Values(values), _command(shared), point=str(name.value) if name else ""), found


def _command(document: Document) -> str:
    return command(document.root.span.source.text)


def _values(document: Document) -> Iterator[tuple[str, Value]]:
    assert isinstance(document.root.value, dict)
    for section in lock.SECTIONS:
        node = document.root.value.get(section)
        if node is None:
            continue
        for path, leaf in [(section, node)] if not _is_map(node) else node.leaves(section):
            reason = _comment(leaf)
            yield path, Value(leaf.data(), "derived" if reason else "spec", reason, span=leaf.span)


def _comment(leaf: Node) -> str:
    """Return the comment on a value's line, without its ``#``."""
    rest = leaf.span.source.line(leaf.span.end_line)[leaf.span.end_column - 1 :]
    return rest.partition("#")[2].strip()


def _is_map(node: Node) -> bool:
    return isinstance(node.value, dict) and bool(node.value)


def _points(folder: str) -> tuple[dict[str, str], dict[str, str]]:
    try:
        with files.open_regular(os.path.join(folder, job.TABLE)) as file:
            text = file.read(_MOST).decode("utf-8", errors="replace")
    except OSError:
        return {}, {}
    rows = [line.split("\t") for line in text.split("\n")][1:]
    whole = [row for row in rows if len(row) == 3]
    return {row[0]: row[1] for row in whole}, {row[0]: row[2] for row in whole}
