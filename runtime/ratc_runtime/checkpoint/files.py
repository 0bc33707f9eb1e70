"""Files with a checksum inside: written under a temporary name, synced, read back and renamed.

`torch.save` writes a zip archive, and a zip archive ends with a comment. The comment holds the SHA-256 of everything
before the comment's length, so the checksum cannot be lost or swapped, and `torch.load` reads the file as usual. torch
itself compares no checksum: it would load a flipped bit in a weight.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

from ratc_runtime.config.yaml_file import open_regular
from ratc_runtime.output.atomic import replacing, sync_folder

BLOCK = 1 << 22
#: The first bytes of a zip archive, which `torch.save` writes.
_ZIP = b"PK\x03\x04"
_MARK = b"sha256:"
_SEAL_LENGTH = len(_MARK) + 64
# Of the end record of a zip archive (APPNOTE 4.3.16): its signature, and the length of the comment as its last field.
_END, _END_LENGTH, _COUNT = b"PK\x05\x06", 22, struct.Struct("<H")
#: Transient errors of a network file system: a short interruption, or a restart of its server.
PASSING = (errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO)
TRIES, PAUSE = 3, 1.0


Result = TypeVar("Result")


class _Writer:
    """A file for torch.save that keeps the operating system's error, which torch replaces by another one.

    The digest covers all bytes except the last two, which hold the length of the comment.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None
        self.digest = hashlib.sha256()
        self._held = b""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._write(view)
            except OSError as error:
                self.error = error
        return len(view)

    def _write(self, view: memoryview) -> None:
        left = view
        while left:
            # The kernel writes at most 2 GiB at a time, and less on a disk that is nearly full.
            left = left[self.file.write(left) :]
        if len(view) >= 2:
            self.digest.update(self._held)
            self.digest.update(view[:-2])
            self._held = bytes(view[-2:])
        else:
            joined = self._held + bytes(view)
            self.digest.update(joined[:-2])
            self._held = joined[-2:]

    def flush(self) -> None:
        pass


def write_file(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` atomically. On failure raise OSError and leave the previous file.

    Transient errors of network file systems are retried.
    """
    retry(lambda: _write_file(path, content))


def _write_file(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as work:
        with open(work, "w+b", buffering=0, opener=_private) as file:
            writer = _Writer(file)
            try:
                torch.save(content, writer)  # type: ignore[arg-type]  # it calls `write` and `flush`
            except RuntimeError:
                if writer.error is None:
                    raise
            if writer.error is not None:
                raise writer.error
            _seal(file, writer)
            os.fsync(file.fileno())
            # Read back from the disk, not from the page cache.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        fault = fault_of(work)
        if fault is not None:
            raise OSError(errno.EIO, f"the data read back differ from the data written ({fault})")
    sync_folder(path.parent)


def _private(path: str, flags: int) -> int:
    """Open a file with mode 0600: a model and its progress may reveal the data that it was trained on."""
    return os.open(path, flags, 0o600)


def _seal(file: IO[bytes], writer: _Writer) -> None:
    size = file.tell()
    end = os.pread(file.fileno(), _END_LENGTH, size - _END_LENGTH)
    if not end.startswith(_END) or end[-2:] != b"\0\0":
        raise RuntimeError("torch.save did not end with the end record of a zip archive")
    file.seek(size - _COUNT.size)
    for part in (_COUNT.pack(_SEAL_LENGTH), _MARK + writer.digest.hexdigest().encode()):
        if file.write(part) != len(part):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fault_of(path: Path) -> str | None:
    """Return a description of the damage to a file written by `write_file`; None if it is whole.

    Raises OSError if it cannot be read.
    """
    return retry(lambda: _fault_of(path))


def _fault_of(path: Path) -> str | None:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        covered = size - _SEAL_LENGTH - _COUNT.size
        if size and file.read(len(_ZIP)) != _ZIP[:size]:
            return "it does not begin as a checkpoint does, so it is another kind of file"
        if covered < 0:
            return f"it ends after {size} bytes"
        file.seek(covered)
        end = file.read()
        if not end.startswith(_COUNT.pack(_SEAL_LENGTH) + _MARK):
            return f"it ends after {size} bytes without its digest"
        file.seek(0)
        if end[-64:].decode("ascii", "replace") != digest_of(file, covered):
            return "its content does not match its digest"
    return None


def is_sealed(path: Path) -> bool:
    """Return whether a file ends with the digest of `write_file`, whole or not. Raises OSError if it cannot be read."""
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _SEAL_LENGTH - _COUNT.size))
        return file.read().startswith(_COUNT.pack(_SEAL_LENGTH) + _MARK)


def digest_of(file: IO[bytes], length: int | None = None) -> str:
    """Return the SHA-256 of the next `length` bytes, or of the rest of the file, in hexadecimal digits."""
    digest = hashlib.sha256()
    left = length if length is not None else -1
    while left:
        block = file.read(BLOCK if left < 0 else min(BLOCK, left))
        if not block:
            break
        digest.update(block)
        left -= len(block) if left > 0 else 0
    return digest.hexdigest()


def retry(action: Callable[[], Result]) -> Result:
    """Return the result of `action`, which is tried up to `TRIES` times on transient errors (`PASSING`)."""
    for _ in range(TRIES - 1):
        try:
            return action()
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(PAUSE)
    return action()


def hidden_name(path: Path, kind: str) -> Path:
    """Return the hidden name beside `path` for its next version (`new`) or its previous one (`old`)."""
    return path.with_name(f".{path.name}.{kind}")


def link_to(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target` in the same folder. It replaces a file or link atomically."""
    if link.is_symlink() and os.readlink(link) == target:
        return
    with replacing(link) as work:
        work.symlink_to(target)
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)  # a copy that followed the link; a link cannot replace a folder
    sync_folder(link.parent)


def remove(path: Path) -> None:
    """Remove a file or folder. A folder is renamed first, so that no incomplete folder keeps the name."""
    if path.is_dir() and not path.is_symlink():
        old = hidden_name(path, "old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        shutil.rmtree(old)
    else:
        path.unlink(missing_ok=True)
