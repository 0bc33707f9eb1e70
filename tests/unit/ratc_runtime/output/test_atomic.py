"""Files are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ratc_runtime.output.atomic import PREFIX, replacing, write_text

from tests.helpers.lockfile import environment


@pytest.mark.parametrize("shared", [False, True])
def test_a_failed_write_keeps_the_old_file_and_no_other(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old", shared=shared)

    def fail() -> None:
        with replacing(path, shared=shared) as work:
            work.write_text("ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_block_that_writes_nothing_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    (tmp_path / f"{PREFIX}a.txt").write_text("half, of a process that was killed")
    with replacing(path) as work:
        assert not work.exists()
    assert os.listdir(tmp_path) == []


def test_a_file_is_synced_before_its_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    monkeypatch.setattr(os, "replace", lambda work, path: done.append("renamed") or replace(work, path))
    write_text(tmp_path / "a.txt", "new", sync=True)
    assert done == [str(tmp_path / f"{PREFIX}a.txt"), "renamed", str(tmp_path)]


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("keep")
    (tmp_path / "a.txt").symlink_to("other")
    (tmp_path / f"{PREFIX}a.txt").symlink_to("other")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "other").read_text() == "keep"
    assert not (tmp_path / "a.txt").is_symlink()


def test_concurrent_writers_leave_one_whole_file(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ratc_runtime.output.atomic import write_text\n"
        "for _ in range(200):\n    write_text(Path(sys.argv[1]), sys.argv[2] * 100_000, shared=True)\n"
    )
    path = tmp_path / "a.txt"
    writers = [subprocess.Popen([sys.executable, "-c", code, path, text], env=environment()) for text in "ab"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            text = path.read_text()
            assert text in ("a" * 100_000, "b" * 100_000)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["a.txt"]
