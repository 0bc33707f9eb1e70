"""The file of a checkpoint: readable by torch and zip, private, with damage detected."""

from __future__ import annotations

import errno
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.checkpoint import files


def test_a_checkpoint_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        files.write_file(tmp_path / "a.pt", {"a": 1})
    finally:
        os.umask(old)
    assert (tmp_path / "a.pt").stat().st_mode & 0o777 == 0o600


def test_a_checkpoint_file_is_read_by_torch_and_zip_and_passes_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    files.write_file(path, {"a": torch.arange(1000.0), "b": "text"})
    assert files.fault_of(path) is None
    for mmap in (False, True):
        assert torch.equal(torch.load(path, weights_only=True, mmap=mmap)["a"], torch.arange(1000.0))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_flipped_bit_or_a_truncation_is_detected(tmp_path: Path) -> None:
    path, chance = tmp_path / "a.pt", random.Random(0)
    files.write_file(path, {"a": torch.arange(300.0)})
    whole = path.read_bytes()
    for at in [0, len(whole) - 1, len(whole) - 72, len(whole) - 74, *(chance.randrange(len(whole)) for _ in range(60))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
        assert files.fault_of(path) is not None, at
        path.write_bytes(whole[:at])
        assert files.fault_of(path) is not None, at
    path.write_bytes(whole + b"\0")
    assert files.fault_of(path) is not None
    path.write_bytes(whole)
    assert files.fault_of(path) is None


def test_a_lost_write_is_detected_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fsync = tmp_path / "a.pt", os.fsync
    files.write_file(path, {"a": torch.zeros(10)})
    before = path.read_bytes()

    def lying(handle: int) -> None:
        fsync(handle)
        os.pwrite(handle, b"\xff", 100)

    monkeypatch.setattr(os, "fsync", lying)
    with pytest.raises(OSError, match="the data read back differ from the data written"):
        files.write_file(path, {"a": torch.ones(10)})
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_short_writes_are_completed(tmp_path: Path) -> None:
    """The kernel takes what fits, at most 2 GiB at a time."""

    class Short:
        def __init__(self) -> None:
            self.taken = b""

        def write(self, data: Any) -> int:
            self.taken += bytes(data[:7])
            return min(7, len(data))

    file: Any = Short()
    writer = files._Writer(file)
    text = bytes(range(100))
    for part in (text[:50], text[50:51], text[51:52], text[52:]):
        assert writer.write(part) == len(part)
    assert file.taken == text
    import hashlib

    assert writer.digest.hexdigest() == hashlib.sha256(text[:-2]).hexdigest()


@pytest.mark.parametrize(("code", "passes"), [(errno.ESTALE, True), (errno.ENOSPC, False)])
def test_transient_write_errors_are_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, passes: bool
) -> None:
    replace, calls = os.replace, []

    def flaky(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise OSError(code, os.strerror(code))
        replace(*arguments)

    monkeypatch.setattr(files, "PAUSE", 0)
    monkeypatch.setattr(os, "replace", flaky)
    if passes:
        files.write_file(tmp_path / "a.pt", {"a": 1})
        assert files.fault_of(tmp_path / "a.pt") is None
    else:
        with pytest.raises(OSError, match="No space left"):
            files.write_file(tmp_path / "a.pt", {"a": 1})
        assert len(calls) == 1
