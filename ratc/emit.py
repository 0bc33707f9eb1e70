"""Writes artifacts to disk: only changed files, each atomically, the lock last."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ratc import files
from ratc.diagnostics import Diagnostic
from ratc.targets.artifact import Artifact

#: Above so many files the disk is asked once to keep them all, instead of once for each.
MANY = 32


def changed(folder: str, artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Return the artifacts with other bytes on disk, or with no file."""
    return [artifact for artifact in artifacts if on_disk(folder, artifact.path) != artifact.text.encode()]


def stale(folder: str, artifacts: Sequence[Artifact], known: Sequence[str]) -> list[str]:
    """Return the files of ratc's that the plan no longer has."""
    names = {artifact.path for artifact in artifacts}
    return [name for name in known if name not in names and on_disk(folder, name) is not None]


def write(
    folder: str, artifacts: Sequence[Artifact], former: Callable[[], Sequence[str]]
) -> tuple[list[str], tuple[Diagnostic, ...]]:
    """Write each file that differs beside its place and rename it; returns their names. The lock comes last: it holds
    the digests of the others. ``former`` names the files of the earlier plan in the folder.

    After an interruption each file is the old one or the new one, and no lock has digests of files that are not there.
    Another process that compiles into the folder at the same time waits. Code: R403.
    """
    done: list[str] = []
    try:
        files.make_folders(folder)
        with _alone_in(folder):
            files.clear(folder)
            remove = stale(folder, artifacts, former())
            new = changed(folder, artifacts)
            many = len(new) > MANY
            for artifact in new:
                if many and artifact is new[-1]:
                    os.sync()  # before the lock that vouches for them
                _replace(folder, artifact, flush=not many or artifact is new[-1])
                done.append(artifact.path)
            for name in remove:
                _remove(folder, name)
    except OSError as error:
        name = os.path.basename(str(error.filename or folder)).split(".ratc-", maxsplit=1)[0].lstrip(".")
        what = f"make the folder `{folder}`" if name == os.path.basename(folder) else f"write `{name}` into `{folder}`"
        message = f"cannot {what}: {error.strerror}"
        note = f"written before that: {', '.join(done)}" if done else "nothing was written"
        helps = ("use `-o DIR` to write the files to another folder",)
        return done, (Diagnostic("R403", message, notes=(note,), helps=helps),)
    return done, ()


@contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    with _locked(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX):
        yield


@contextmanager
def steady(folder: str) -> Iterator[None]:
    """Hold a shared lock on the folder, so that no process compiles into it; does nothing if there is no folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    with _locked(handle, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(handle: int, kind: int) -> Iterator[None]:
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def on_disk(folder: str, name: str) -> bytes | None:
    """Return the bytes of a file of the folder, or None. A file behind a link does not belong to the folder."""
    return None if files.link_above(folder, name) else files.read(os.path.join(folder, name))


def _remove(folder: str, name: str) -> None:
    """Delete a file, and then the empty folders above it below ``folder``."""
    files.refuse_link(folder, name)
    os.unlink(os.path.join(folder, name))
    with suppress(OSError):
        while name := os.path.dirname(name):
            os.rmdir(os.path.join(folder, name))


def _replace(folder: str, artifact: Artifact, flush: bool) -> None:
    files.refuse_link(folder, artifact.path)
    path = os.path.join(folder, artifact.path)
    if "/" in artifact.path:
        files.make_folders(os.path.dirname(path))
        files.clear(os.path.dirname(path))
    files.replace(path, artifact.text.encode(), executable=artifact.executable, flush=flush)
