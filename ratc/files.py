"""Replaces files atomically, never through a link, and removes the unfinished files of killed processes.

An unfinished file is `.NAME.ratc-PID-N@HOST` beside its place, and locked; a temporary folder is
`ratc-PID-N@HOST-…`. So the next run can find those without a living process, on this host or on another one.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import BinaryIO

_MARK = re.compile(r"^(?:\..*\.)?ratc-(\d+)(?:-\d+)?(?:@([A-Za-z0-9-]+?))?(?:-[a-z0-9_]{8})?(?:\.part(?:\.\d+)?)?$")
#: Seconds after which an unfinished file of another host has no owner: no file takes so long to write.
_OLD_S = 86_400
#: Where files are the kernel's own.
_KERNEL = ("/proc/", "/sys/", "/dev/")
_count = itertools.count()


def replace(
    path: str, data: bytes, mode: int | None = None, executable: bool = False, flush: bool = True, force: bool = True
) -> None:
    """Write a file beside its place and rename it; a link in its place is replaced, not followed.

    ``mode`` are its permission bits, by default 0666 or 0777 less the umask. With ``flush`` the content is on disk
    before the rename. Without ``force`` an existing path raises FileExistsError. Devices, such as /dev/stdout, are
    written into. Raises OSError. After an error or Ctrl-C no unfinished file is left.
    """
    if _is_device(path):
        with open(path, "wb") as device:
            device.write(data)
        return
    if not force and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    with _own(path) as (temporary, handle):
        with os.fdopen(handle, "wb", closefd=False) as file:
            file.write(data)
        if flush:
            os.fsync(handle)
        os.fchmod(handle, (0o777 if executable else 0o666) & ~_umask() if mode is None else mode)
        if force:
            os.replace(temporary, path)
        else:
            _rename_if_free(temporary, path)


def make_folders(path: str) -> None:
    """Make a folder and its missing parents. Raises OSError, also for a path too deep for Python's recursion."""
    try:
        os.makedirs(path, exist_ok=True)
    except RecursionError:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path) from None


def _is_device(path: str) -> bool:
    """Whether a path exists in a folder of the kernel's and is not a regular file."""
    if not os.path.abspath(path).startswith(_KERNEL) or not os.path.lexists(path):
        return False
    return not stat.S_ISREG(os.lstat(path).st_mode)


def _rename_if_free(old: str, new: str) -> None:
    """Rename a file; raise FileExistsError if the name is taken."""
    try:
        os.link(old, new)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
        os.replace(old, new)


@contextmanager
def _own(path: str) -> Iterator[tuple[str, int]]:
    """Yield a new file beside a place, open for writing and locked; it is removed at the end if it still exists."""
    head, name = os.path.split(path)
    temporary = os.path.join(head, f".{name[:100]}.{mark()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(temporary, flags, 0o600)
    except FileExistsError:  # of an earlier process of this number
        os.unlink(temporary)
        handle = os.open(temporary, flags, 0o600)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary, handle
    finally:
        os.close(handle)
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def mark() -> str:
    """Return the suffix of the name of an unfinished file of this process."""
    return f"ratc-{os.getpid()}-{next(_count)}@{_host()}"


@contextmanager
def temporary_folder(place: str | None = None) -> Iterator[str]:
    """A folder of this process alone, mode 0700, removed at the end; those of killed processes are removed first.

    Its name cannot be guessed. ``place`` is the folder above it, by default the system's for temporary files.
    """
    place = place or tempfile.gettempdir()
    clear(place)
    with tempfile.TemporaryDirectory(prefix=f"{mark()}-", dir=place, ignore_cleanup_errors=True) as folder:
        yield folder


def clear(folder: str) -> None:
    """Remove the unfinished files of this user's killed processes from a folder."""
    try:
        names = [name for name in os.listdir(folder) if _MARK.match(name)]
    except OSError:
        return
    for name in names:
        with suppress(OSError):
            _clear(os.path.join(folder, name), name)


def _clear(path: str, name: str) -> None:
    match, found = _MARK.match(name), os.lstat(path)
    assert match
    if found.st_uid != os.geteuid() or not _is_dead(int(match[1]), match[2], found.st_mtime):
        return
    if stat.S_ISDIR(found.st_mode):
        if match[2] is not None:  # a folder without a host's name is not of this making
            shutil.rmtree(path)
    elif stat.S_ISREG(found.st_mode):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by its writer, on any host
            os.unlink(path)
        finally:
            os.close(handle)


def _is_dead(pid: int, host: str | None, changed: float) -> bool:
    """Whether a process has ended. For another host this is decided by the file's age."""
    if host is not None and host != _host():
        return time.time() - changed > _OLD_S
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def open_own(path: str, flags: int = 0) -> BinaryIO:
    """Open a file of this process for writing; it is created if needed. Raises OSError for a link or a pipe at its
    path.
    """
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "ab" if flags & os.O_APPEND else "wb")


def open_regular(path: str, named: bool = False) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for any other: devices, pipes and the kernel's files may never
    end, and the kernel's reveal this process, for example its variables.

    If it is ``named`` on the command line, it may be a pipe or a device, but no link to one.
    """
    if named and (path.startswith("/dev/") or not os.path.islink(path)):
        return open(path, "rb")
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) and not os.path.realpath(path).startswith(_KERNEL):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "it is not a regular file", path)


def read(path: str, most: int | None = None) -> bytes | None:
    """Return the bytes of a regular file, at most ``most``; None for any other file, links included."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read() if most is None else file.read(most)
    except OSError:
        return None
    finally:
        os.close(handle)


def shown(path: str) -> str:
    """The path for people: from this folder if it lies below it, else whole."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative


def link_above(folder: str, name: str) -> str | None:
    """Return the first folder of a relative path that is a link: files behind it do not belong to ``folder``."""
    at = ""
    for part in os.path.dirname(name).split("/"):
        at = os.path.join(at, part)
        if part and os.path.islink(os.path.join(folder, at)):
            return at
    return None


def refuse_link(folder: str, name: str) -> None:
    """Raise OSError if a folder of the relative path is a link."""
    if (link := link_above(folder, name)) is not None:
        raise OSError(errno.ELOOP, f"`{link}` is a link, and links below the folder are not followed", name)


def _host() -> str:
    """Return 6 hexadecimal digits for this host. They are short, because the path of a socket has at most 107 bytes."""
    return sha256(os.uname().nodename.encode()).hexdigest()[:6]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
