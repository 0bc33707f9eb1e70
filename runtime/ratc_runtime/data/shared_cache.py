"""The store of the cache of decoded images: one bounded, memory-mapped file that many processes fill together.

A file holds a head, a table with one record per sample, and then the packed samples. A sample is written first and its
record after it, each with its checksum: after a kill or a power failure a sample is whole or absent. In memory the file
has no name (memfd), so it vanishes with the last process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

MAGIC = b"RATCACH1"
_HEAD = struct.Struct("<8sQ")  # magic, records
_COUNT = struct.Struct("<Q")
_RECORD = struct.Struct("<QQ16sI")  # offset, length, stamp, checksum of the data
_CHECK = struct.Struct("<I")
PAGE = 4096
RECORD_BYTES = 64
_USED, _STORED, _NOTES = 64, 72, 128
#: Byte ranges of the file that are locked: the head while it is changed, and by every process that has the file open.
_LOCK_HEAD, _LOCK_OPEN = 0, 1
_ATTEMPTS, _PAUSE = 50, 0.0002


class SharedCache:
    """An open store of at most `limit` bytes of packed samples; safe with several processes and after a kill.

    It owns `descriptor`. Raises OSError or ValueError if the file is not a store of `records` records.
    """

    def __init__(self, descriptor: int, records: int, limit: int) -> None:
        self.descriptor, self.records, self.limit = descriptor, records, limit
        self.start = _start(records)
        self._checked = bytearray(records)
        self._full = False
        if os.pread(descriptor, _HEAD.size, 0) != _HEAD.pack(MAGIC, records):
            raise ValueError("not a cache of this data set")
        size = self.start + limit
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        self._map = mmap.mmap(descriptor, size)
        self._view = memoryview(self._map)

    @classmethod
    def in_memory(cls, records: int, limit: int) -> SharedCache:
        """Make a store for `records` samples and `limit` bytes that exists as long as a process has it open."""
        descriptor = os.memfd_create("ratc-cache")
        os.pwrite(descriptor, _HEAD.pack(MAGIC, records), 0)
        return cls(descriptor, records, limit)

    @classmethod
    def on_disk(cls, path: Path, records: int, limit: int) -> SharedCache:
        """Open the store for `records` samples and `limit` bytes at `path`, or make it. Another file with that name is
        replaced. Raises OSError.
        """
        for _ in range(3):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                _make(path, records)
                continue
            try:
                return cls._claimed(descriptor, records, limit)
            except ValueError:
                os.close(descriptor)
                path.unlink(missing_ok=True)
        raise OSError(errno.EAGAIN, "is locked by other processes too often")

    @classmethod
    def _claimed(cls, descriptor: int, records: int, limit: int) -> SharedCache:
        shared = cls(descriptor, records, limit)
        alone = _lock(descriptor, _LOCK_OPEN, wait=False)
        if alone and shared.used > limit // 2 and shared.live() < shared.used // 2:
            shared.close()
            raise ValueError("mostly samples that have changed since")
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _LOCK_OPEN)
        return shared

    @classmethod
    def of_process(cls, pid: int, descriptor: int, records: int, limit: int) -> SharedCache:
        """Open a store that another process of this machine and user has open as the file `descriptor`."""
        return cls(os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC), records, limit)

    def __reduce__(self) -> Any:
        # For processes that are not forks of this one, which lives on while they start.
        return SharedCache.of_process, (os.getpid(), self.descriptor, self.records, self.limit)

    @property
    def used(self) -> int:
        """Bytes used, by valid samples and replaced ones."""
        return int(_COUNT.unpack_from(self._view, _USED)[0])

    @property
    def stored(self) -> int:
        """Samples stored since the file was made. Changed ones, and ones stored by two processes, count twice."""
        return int(_COUNT.unpack_from(self._view, _STORED)[0])

    def live(self) -> int:
        """Return the bytes of the valid samples."""
        found = (self._record(slot) for slot in range(self.records))
        return sum(record[1] for record in found if record is not None)

    def held(self) -> int:
        """Return the number of valid samples."""
        return sum(self._record(slot) is not None for slot in range(self.records))

    def note(self, which: int) -> None:
        """Set the flag with the number `which`, which every process sees. The caller defines its meaning."""
        self._view[_NOTES + which] = 1

    def noted(self, which: int) -> bool:
        """Return whether a process has set that flag."""
        return bool(self._view[_NOTES + which])

    def has(self, slot: int, stamp: bytes) -> bool:
        """Return whether the store holds the sample with the number `slot`, and with that stamp."""
        record = self._record(slot)
        return record is not None and record[2] == stamp

    def read(self, slot: int) -> memoryview | None:
        """Return the packed sample with the number `slot` as bytes; None if there is none. Do not write to the view.

        This process's first access compares the checksum.
        """
        record = self._record(slot)
        if record is None:
            return None
        offset, length, _, checksum = record
        packed = self._view[offset : offset + length]
        if not self._checked[slot]:
            if zlib.crc32(packed) != checksum:
                return None
            self._checked[slot] = 1
        return packed

    def is_checked(self, slot: int) -> bool:
        """Return whether this process has verified that sample."""
        return bool(self._checked[slot])

    def store(self, slot: int, stamp: bytes, packed: bytes) -> bool:
        """Store a packed sample. Returns False if there is no room, or the lock is not free."""
        offset = self._reserve(len(packed))
        if offset is None:
            return False
        try:
            _write(self.descriptor, packed, offset)
        except OSError:  # no room on the disk, or the disk is gone: the reserved room stays empty
            self._full = True
            return False
        if not _lock(self.descriptor, _LOCK_HEAD):
            return False
        try:
            record = _RECORD.pack(offset, len(packed), stamp, zlib.crc32(packed))
            at = PAGE + slot * RECORD_BYTES
            self._view[at : at + len(record) + _CHECK.size] = record + _CHECK.pack(zlib.crc32(record))
            self._add(_STORED, 1)
        finally:
            _unlock(self.descriptor, _LOCK_HEAD)
        self._checked[slot] = 1
        return True

    def has_room(self, length: int) -> bool:
        """Return whether `length` more bytes fit."""
        return not self._full and self.used + RECORD_BYTES + length <= self.limit

    def forget(self, slot: int) -> None:
        """Remove a sample. Its room is reused only after the file is made again."""
        at = PAGE + slot * RECORD_BYTES
        self._view[at : at + RECORD_BYTES] = bytes(RECORD_BYTES)

    def close(self) -> None:
        """Close the mapping. The cache cannot be used afterwards."""
        self._view.release()
        self._map.close()

    def _record(self, slot: int) -> tuple[int, int, bytes, int] | None:
        at = PAGE + slot * RECORD_BYTES
        raw = bytes(self._view[at : at + _RECORD.size + _CHECK.size])
        record = raw[: _RECORD.size]
        offset, length, stamp, checksum = _RECORD.unpack(record)
        # One that is being written just now has a checksum that does not fit.
        if not length or _CHECK.unpack(raw[_RECORD.size :])[0] != zlib.crc32(record):
            return None
        if offset < self.start or offset + length > len(self._view):
            return None
        return offset, length, stamp, checksum

    def _reserve(self, length: int) -> int | None:
        if self._full or not _lock(self.descriptor, _LOCK_HEAD):
            return None
        try:
            used = -(-self.used // RECORD_BYTES) * RECORD_BYTES
            if used + length > self.limit:
                return None
            _COUNT.pack_into(self._view, _USED, used + length)
            return self.start + used
        finally:
            _unlock(self.descriptor, _LOCK_HEAD)

    def _add(self, at: int, number: int) -> None:
        _COUNT.pack_into(self._view, at, int(_COUNT.unpack_from(self._view, at)[0]) + number)


def _start(records: int) -> int:
    return PAGE + -(-records * RECORD_BYTES // PAGE) * PAGE


def _make(path: Path, records: int) -> None:
    """Make an empty store under a temporary name, and link it to `path` unless another process was first."""
    descriptor, work = tempfile.mkstemp(prefix=f".{path.name[:40]}-", dir=path.parent)
    try:
        os.pwrite(descriptor, _HEAD.pack(MAGIC, records), 0)
        os.ftruncate(descriptor, _start(records))
        os.link(work, path)
    except FileExistsError:
        pass
    finally:
        os.close(descriptor)
        os.unlink(work)


def remove_unused(path: Path) -> bool:
    """Remove a store that no process has open; return whether it was removed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not _lock(descriptor, _LOCK_OPEN, wait=False):
            return False
        path.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _lock(descriptor: int, byte: int, wait: bool = True) -> bool:
    """Lock one byte for this process. Gives up after a hundredth of a second: a cache is not worth waiting for."""
    for _ in range(_ATTEMPTS if wait else 1):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return False  # a file system without locks
        if wait:
            time.sleep(_PAUSE)
    return False


def _unlock(descriptor: int, byte: int) -> None:
    fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, byte)


def _write(descriptor: int, packed: bytes, offset: int) -> None:
    view = memoryview(packed)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
