"""Takes files out of a git revision: `REV:path` becomes a file in a temporary folder; findings use its own name."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ratc import files
from ratc.diagnostics import Diagnostic, Source, Span, did_you_mean
from ratc.plan import Value
from ratc.yaml.parse import MAX_BYTES

#: The files of a spec: its layers, facts, locks, tables of points, and the code that it names.
_KINDS = (".yaml", ".yml", ".json", ".py", ".tsv")
_LINK, _FILES = "120000", ("100644", "100755", "120000")


@dataclass(frozen=True, slots=True)
class Revision:
    """A path of a revision, as files on disk.

    ``path`` is its temporary path, ``folder`` the temporary copy of the repository's root, ``name`` the user's word.
    """

    name: str
    folder: str
    path: str

    def renamed(self, value: Value) -> Value:
        """Return the value with the revision's file as its place, in place of the temporary one."""
        span = value.span and self.placed(value.span)
        return replace(value, span=span, reason=self.told(value.reason))

    def found(self, item: Diagnostic) -> Diagnostic:
        """Return the diagnostic with the names of the revision's files."""
        return replace(
            item,
            span=item.span and self.placed(item.span),
            message=self.told(item.message),
            notes=tuple(map(self.told, item.notes)),
            helps=tuple(map(self.told, item.helps)),
        )

    def told(self, text: str) -> str:
        """Return a text with the names of temporary files replaced by the revision's."""
        return text.replace(f"{self.folder}/", f"{self.name}:")

    def placed(self, span: Span) -> Span:
        """Return the span with the name of the revision's file."""
        name = self.told(span.source.name)
        return span if name == span.source.name else replace(span, source=Source(name, span.source.text))


def split(text: str) -> tuple[str, str] | None:
    """Return revision and path of `REV:path`, or None if the text is a file's name or has another form."""
    revision, colon, path = text.partition(":")
    return None if not colon or not revision or os.path.exists(text) else (revision, path)


def take(revision: str, path: str, near: str, stack: ExitStack) -> tuple[Revision | None, tuple[Diagnostic, ...]]:
    """Take the files of a revision; they exist until ``stack`` closes. Codes: R420, R421.

    ``near`` is a folder in the repository. ``path`` is seen from its root, as git takes it, or from there.
    """
    shown = f"{revision}:{path}"
    if _git(near, "rev-parse", "--git-dir") is None:
        message = f"`{shown}` names a git revision, but `{near}` is not in a git repository"
        return None, (Diagnostic("R420", message, helps=("name a file, or run the command in the repository",)),)
    tree = _git(near, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{tree}}")
    if tree is None:
        return None, (_unknown(revision, near),)
    prefix = (_git(near, "rev-parse", "--show-prefix") or b"").decode("utf-8", "surrogateescape").strip()
    entries = list(_entries(near, tree.decode().strip()))
    names = {name for _, _, name in entries}
    inside = next((name for name in _candidates(path, prefix) if _holds(names, name)), None)
    if inside is None:
        return None, (_no_file(revision, path, names),)
    folder = os.path.realpath(stack.enter_context(files.temporary_folder()))
    _write(near, entries, folder)
    return Revision(revision, folder, os.path.join(folder, inside)), ()


def inside(path: str) -> str | None:
    """Return a file's path from the root of its repository, or None if it is in none."""
    folder, name = os.path.split(os.path.abspath(path))
    root = _git(folder or ".", "rev-parse", "--show-toplevel")
    if root is None:
        return None
    return os.path.relpath(
        os.path.join(os.path.realpath(folder), name), os.path.realpath(os.fsdecode(root).rstrip("\n"))
    )


def _unknown(revision: str, near: str) -> Diagnostic:
    message = f"git does not know the revision `{revision}`"
    if (_git(near, "rev-parse", "--is-shallow-repository") or b"").strip() == b"true":
        note = "this clone is shallow: it has only the last commits"
        help_ = "`git fetch --unshallow` gets the rest; in GitHub Actions, `fetch-depth: 0` of actions/checkout"
        return Diagnostic("R420", message, notes=(note,), helps=(help_,))
    refs = (_git(near, "for-each-ref", "--format=%(refname:short)") or b"").decode(errors="replace").split()
    return Diagnostic("R420", message, helps=did_you_mean(revision, refs))


def _no_file(revision: str, path: str, names: set[str]) -> Diagnostic:
    if os.path.isabs(path) or os.path.normpath(path).startswith(".."):
        outside = ("write the path from the root of the repository",)
        return Diagnostic("R421", f"`{path}` is outside the repository", helps=outside)
    near = did_you_mean(path, [name for name in names if name.endswith((".yaml", ".yml"))])
    helps = near or (f"`git ls-tree -r --name-only {revision}` lists the files there",)
    return Diagnostic("R421", f"there is no `{path}` in revision `{revision}`", helps=helps)


def _candidates(path: str, prefix: str) -> Iterator[str]:
    """Yield the path as git reads it, `./x` from the shell's folder and others from the root; then from the folder."""
    below = os.path.normpath(os.path.join(prefix, path))
    if not path.startswith("./"):
        yield os.path.normpath(path)
    yield below


def _holds(names: set[str], path: str) -> bool:
    return path in names or any(name.startswith(f"{path}/") for name in names)


def _entries(near: str, tree: str) -> Iterator[tuple[str, str, str]]:
    """Yield mode, object and path of the files of a tree that a spec can consist of."""
    listing = _git(near, "ls-tree", "-r", "-z", "-l", "--full-tree", tree) or b""
    for line in listing.split(b"\0"):
        if not line:
            continue
        words, _, raw = line.partition(b"\t")
        mode, _, thing, size = words.decode().split()
        name = os.fsdecode(raw)
        if mode in _FILES and name.endswith(_KINDS) and int(size) <= 4 * MAX_BYTES:
            yield mode, thing, name


def _write(near: str, entries: list[tuple[str, str, str]], folder: str) -> None:
    asked = "".join(f"{thing}\n" for _, thing, _ in entries).encode()
    data = _git(near, "cat-file", "--batch", given=asked) or b""
    for mode, _, name in entries:
        head, _, data = data.partition(b"\n")
        size = int(head.split()[2])
        content, data = data[:size], data[size + 1 :]
        path = os.path.join(folder, name)
        # Git writes no such trees, but lists them.
        if ".." in name.split("/") or files.link_above(folder, name) or os.path.lexists(path):
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if mode == _LINK:
            _link(folder, path, os.fsdecode(content))
        else:
            with open(path, "wb") as file:
                file.write(content)


def _link(folder: str, path: str, aim: str) -> None:
    """Make a link of the revision, unless it may leave it. A `..` after a name may: the name can itself be a link."""
    end = os.path.normpath(os.path.join(os.path.dirname(path), aim))
    safe = ".." not in re.sub(r"^(\.\.?/+)*", "", aim).split("/") or not aim.strip("./")
    if safe and not os.path.isabs(aim) and end.startswith(f"{folder}/"):
        os.symlink(aim, path)


def _git(folder: str, *words: str, given: bytes | None = None) -> bytes | None:
    """Return the standard output of git; None if it fails, or if there is no git."""
    try:
        done = subprocess.run(["git", "-C", folder, *words], input=given, capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
