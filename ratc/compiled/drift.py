"""Compares the files of a compiled folder with the output of its inputs now, and gives the origin of each difference.

The lock holds the digests of its inputs and of the files beside it. They show whether an input changed, a file was
edited, or another version of ratc made the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from ratc import __version__, emit
from ratc.compiled.read_lock import read_lock
from ratc.diagnostics import Diagnostic, Severity, Source, Span, has_errors
from ratc.layers import SHORT_NAMES
from ratc.own_code import callables
from ratc.targets import job, lock
from ratc.targets.artifact import Artifact, digest
from ratc.yaml.parse import Document, Node, parse

#: The most ranges of lines in a finding: more are of no use.
_MOST = 5


def read(folder: str) -> tuple[Document | None, tuple[Diagnostic, ...]]:
    """Read the lock of a folder; None if there is none. Codes: R00x, R428 if its format is newer."""
    if emit.on_disk(folder, lock.NAME) is None:
        return None, ()
    return read_lock(os.path.join(folder, lock.NAME))


def compare(folder: str, made: Sequence[Artifact], remove: Sequence[str], again: str) -> tuple[Diagnostic, ...]:
    """Return the differences of a folder from the artifacts of its spec. Codes: R00x, R404, R425, R426, R428, R448."""
    document, found = read(folder)
    if has_errors(found):
        return found
    helps = (f"run `{again}`",)
    wanted = {file.path: file for file in made}
    fresh = parse(lock.NAME, wanted[lock.NAME].text.encode())[0]
    moved = [*_inputs(folder, document, _table(fresh, "inputs"), helps)]
    moved += own_code(folder, document, records(fresh), helps)
    edited = [*untouched(folder, document, helps, wanted)]
    touched = {item.span.source.name for item in edited if item.span} | {
        os.path.join(folder, name) for name in wanted if emit.on_disk(folder, name) is None
    }
    stale = [
        item for item in _differences(folder, made, helps) if not item.span or item.span.source.name not in touched
    ]
    stale = [item for item in stale if not _is_repeated(item, edited)]
    if moved and document is not None:
        stale = [item for item in stale if item.span is None]
    elif document is not None and _version(document) != __version__:
        stale = [*_other_version(folder, document, stale)]
    left = [
        Diagnostic("R404", f"`{os.path.join(folder, name)}` belongs to an earlier plan", helps=helps) for name in remove
    ]
    return (*moved, *edited, *stale, *left)


def untouched(
    folder: str, document: Document | None, helps: tuple[str, ...], wanted: dict[str, Artifact] | None = None
) -> Iterator[Diagnostic]:
    """Yield a finding for each file whose digest is not that in the lock or in the table of points. Codes: R404, R426.

    ``wanted`` are the artifacts that the spec gives now. If they have the recorded digest, the edited lines are named.
    """
    for name, vouched in _recorded_digests(folder, document).items():
        data, path = emit.on_disk(folder, name), os.path.join(folder, name)
        if data is None:
            if wanted is None or name in wanted:
                yield Diagnostic("R404", f"`{path}` is missing", helps=helps)
        elif digest(data) != vouched:
            text, file = data.decode("utf-8", errors="replace"), (wanted or {}).get(name)
            message = f"`{path}` was edited by hand: its digest is not the one in the lock"
            if file is None or file.digest != vouched:
                note = "the changed lines are unknown: the spec cannot be compiled again here"
                yield Diagnostic("R426", message, _line(path, text, 1), (note,), helps)
            else:
                yield _edited("R426", message, path, text, file.text, helps)


def recorded_inputs(folder: str, document: Document | None, base: str, helps: tuple[str, ...]) -> Iterator[Diagnostic]:
    """Yield a finding for each input of a lock with changed content. Code: R425."""
    path = os.path.join(folder, lock.NAME)
    for name, node in _table(document, "inputs").items():
        data = emit.on_disk(base, name)
        if data is None or digest(data) != node.value:
            what = "is gone" if data is None else "changed"
            yield Diagnostic("R425", f"`{name}` {what} since `{path}` was compiled", node.span, (), helps)


def own_code(
    folder: str, document: Document | None, now: Mapping[str, Any], helps: tuple[str, ...]
) -> Iterator[Diagnostic]:
    """Yield a finding for each module of the user's that differs from the lock's record. Code: R448."""
    if document is None:
        return
    before, path = records(document), os.path.join(folder, lock.NAME)
    section = document.root.find(("own_code",))
    for name in sorted({*before, *now}):
        words = callables.moved(before.get(name), now.get(name))
        if words:
            node = _table(document, "own_code").get(name)
            span = node.span if node else (section or document.root).key_span
            message = f"your own code `{name}` has changed since `{path}` was compiled: {words}"
            note = "the model, the data or the loss may compute something else than the reviewed code"
            yield Diagnostic("R448", message, span, (note,), helps)


def by_digest(
    folder: str, document: Document | None, base: str, helps: tuple[str, ...], now: Mapping[str, Any]
) -> Iterator[Diagnostic]:
    """Compare digests alone, without compiling again. ``base`` is the spec's folder, ``now`` the own code that it
    reaches. Codes: R404, R425, R426, R448.
    """
    if document is None:
        yield Diagnostic("R404", f"`{os.path.join(folder, lock.NAME)}` is missing", helps=helps)
    yield from recorded_inputs(folder, document, base, helps)
    yield from own_code(folder, document, now, helps)
    yield from untouched(folder, document, helps)


def records(document: Document | None) -> dict[str, Any]:
    """Return the own code of a lock: its record of each module."""
    found = {name: node.data() for name, node in _table(document, "own_code").items()}
    return {name: record for name, record in found.items() if isinstance(record, dict)}


def _is_repeated(item: Diagnostic, others: Sequence[Diagnostic]) -> bool:
    return any(item.message == other.message for other in others)


def _inputs(
    folder: str, document: Document | None, now: dict[str, Node], helps: tuple[str, ...]
) -> Iterator[Diagnostic]:
    """Yield a finding for each input with another digest than in the lock. Code: R425."""
    if document is None:
        return
    before, path = _table(document, "inputs"), os.path.join(folder, lock.NAME)
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old and new and old.value == new.value:
            continue
        what = "changed" if old and new else "came into use" if new else "went out of use"
        span = old.span if old else (document.root.find(("inputs",)) or document.root).key_span
        note = "all values that depend on it may differ; compile again and look at `git diff` for the lines"
        yield Diagnostic("R425", f"`{name}` {what} since `{path}` was compiled", span, (note,), helps)


def _differences(folder: str, made: Sequence[Artifact], helps: tuple[str, ...]) -> Iterator[Diagnostic]:
    for artifact in emit.changed(folder, made):
        path, there = os.path.join(folder, artifact.path), emit.on_disk(folder, artifact.path)
        if there is None:
            yield Diagnostic("R404", f"`{path}` is missing", helps=helps)
            continue
        text = there.decode("utf-8", errors="replace")
        if artifact.path == lock.NAME and _same_lock(text, artifact.text):
            continue
        yield _edited(
            "R404", f"`{path}` differs from a new compilation of its inputs", path, text, artifact.text, helps
        )


def _other_version(folder: str, document: Document, stale: list[Diagnostic]) -> Iterator[Diagnostic]:
    """Yield one finding on the version in place of those on each file; a warning if only the version differs."""
    path, node = os.path.join(folder, lock.NAME), document.root.find(("ratc_version",))
    theirs = _version(document)
    only = len(stale) == 1 and stale[0].span is not None and stale[0].notes[0].startswith("only line ")
    only = only and node is not None and stale[0].span is not None and stale[0].span.line == node.span.line
    names = ", ".join(sorted({os.path.basename(item.span.source.name) for item in stale if item.span}))
    message = f"`{path}` was compiled by ratc {theirs}; this is ratc {__version__}"
    note = "only the version in the lock differs" if only else f"a compilation with this ratc differs in {names}"
    helps = (*(stale[0].helps if stale else ()), f"or check with ratc {theirs}")
    severity = Severity.WARNING if only else Severity.ERROR
    yield Diagnostic("R428", message, node.span if node else None, (note,), helps, severity)


def _edited(code: str, message: str, path: str, old: str, new: str, helps: tuple[str, ...]) -> Diagnostic:
    """Return a finding at the first different line, with the ranges of all."""
    before, after = old.split("\n"), new.split("\n")
    blocks = [
        block for block in SequenceMatcher(None, before, after, autojunk=False).get_opcodes() if block[0] != "equal"
    ]
    if not blocks:  # bytes that no text shows
        return Diagnostic(code, message, _line(path, old, 1), ("it holds bytes that are not UTF-8",), helps)
    _, start, end, first, last = blocks[0]
    ranges = [f"{low + 1}" if high - low <= 1 else f"{low + 1} to {high}" for _, low, high, _, _ in blocks]
    more = f" and {len(ranges) - _MOST} more" if len(ranges) > _MOST else ""
    many = len(ranges) > 1 or end - start > 1
    lines = f"{'lines' if many else 'only line'} {', '.join(ranges[:_MOST])}{more} differ{'' if many else 's'}"
    should = f"line {start + 1} should be `{after[first].strip()}`" if last > first else ""
    gone = "" if should else f"line {start + 1} should not be there"
    return Diagnostic(code, message, _line(path, old, start + 1), (lines, should or gone), helps)


def _line(path: str, text: str, number: int) -> Span:
    source = Source(path, text)
    return Span(source, number, 1, number, max(2, len(source.line(number)) + 1))


def _same_lock(there: str, given: str) -> bool:
    """Whether two locks differ at most in the option or variable that gave a value: the head has `--set` for both."""
    lines = list(zip(there.split("\n"), given.split("\n"), strict=False))
    return there.count("\n") == given.count("\n") and all(old == new or _same_layer(old, new) for old, new in lines)


def _same_layer(old: str, new: str) -> bool:
    value, _, path = new.partition("  # --set ")
    shorts = [name for name, meant in SHORT_NAMES.items() if meant == path]
    names = [f"--{name}" for name in shorts] + [f"RAT_{name.upper().replace('-', '_')}" for name in shorts]
    return bool(path) and old in [f"{value}  # {name}" for name in (*names, f"RAT_{path.upper().replace('.', '__')}")]


def _recorded_digests(folder: str, document: Document | None) -> dict[str, str]:
    """Return the digest of every file that is recorded in the lock, its table of points, or the points' own locks."""
    known = {name: str(node.value) for name, node in _table(document, "artifacts").items()}
    if job.TABLE in known:
        rows = (emit.on_disk(folder, job.TABLE) or b"").decode("utf-8", errors="replace").splitlines()[1:]
        for name, _, vouched in (row.split("\t") for row in rows if row.count("\t") == 2):
            own = f"{job.POINTS}/{name}"
            known[f"{own}/{lock.NAME}"] = vouched
            point = parse(own, emit.on_disk(folder, f"{own}/{lock.NAME}") or b"")[0]
            known |= {f"{own}/{file}": str(node.value) for file, node in _table(point, "artifacts").items()}
    return known


def _table(document: Document | None, key: str) -> dict[str, Node]:
    node = document.root.find((key,)) if document else None
    return node.value if node and isinstance(node.value, dict) else {}


def _version(document: Document) -> str:
    node = document.root.find(("ratc_version",))
    return str(node.value) if node else "of no version"
