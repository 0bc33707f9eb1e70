"""Writing into hostile folders, onto full disks and over other files: a plan is written whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.effort import HANGS_S
from tests.places import ROOT
from tests.security.commands import IS_ROOT, SPEC, assert_consistent, digests, shell, write
from tests.security.test_hostile_input import BAD

pytestmark = pytest.mark.usefixtures("in_a_folder")

FACTS = "gpus_per_node: 2\ngpu: a100-80\ncpus: 16\n"


@pytest.mark.parametrize("folder", ["spec.yaml/out", "/dev/null/out", "/proc/out", "n" * 300])
def test_r403_for_an_output_folder_that_cannot_be_written(folder, refused):
    refused("R403", "compile", write("spec.yaml", SPEC), "-o", folder)
    assert os.listdir() == ["spec.yaml"]


def test_r403_for_a_folder_in_the_place_of_a_file(refused):
    os.makedirs("out/run.sh")
    assert "run.sh" in refused("R403", "compile", write("spec.yaml", SPEC), "-o", "out")
    assert not [name for name in os.listdir("out") if ".ratc-" in name]


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()], ids=["full", "interrupt"]
)
def test_interrupted_writing_leaves_the_old_or_the_new_files(error, call, after, ratc, monkeypatch):
    write("spec.yaml", SPEC)
    ratc("compile", "spec.yaml", "-o", "out")
    before = digests()
    ratc("compile", "spec.yaml", "-o", "other", "--seed", "7", "--batch-size", "3", "--set", "training.precision=bf16")
    new = digests("other")
    real, calls = getattr(os, call), []

    def stop(*arguments):
        calls.append(call)
        if len(calls) > after:
            raise error
        return real(*arguments)

    write("out/mine.txt", "mine")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, stop)
        status, out, err = ratc(
            "compile", "spec.yaml", "-o", "out", "--seed", "7", "--batch-size", "3", "--set", "training.precision=bf16"
        )
    assert calls
    assert out == ""
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "interrupted" in err if status == 130 else "[R403]" in err
    after_it = digests()
    assert set(after_it) == {*before, "mine.txt"}, "no temporary file is left"
    assert all(after_it[name] in (before[name], new[name]) for name in before), "each file is the old or the new one"
    assert after_it["lock.yaml"] == before["lock.yaml"], "the lock comes last"
    assert Path("out/mine.txt").read_text() == "mine"
    assert ratc("compile", "spec.yaml", "-o", "out")[0] == 0
    assert digests() == {**before, "mine.txt": after_it["mine.txt"]}, "compiling again mends it"


@pytest.mark.skipif(not IS_ROOT or not shutil.which("mount"), reason="mounting takes root")
def test_a_full_disk_leaves_no_partial_file(refused):
    os.mkdir("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", "disk"], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write("disk/filler", b"x" * (12 << 10))
        refused("R403", "compile", write("spec.yaml", SPEC), "-o", "disk/out")
        assert not [name for name in os.listdir("disk/out") if name == "lock.yaml" or ".ratc-" in name]
    finally:
        subprocess.run(["umount", "disk"], check=True)


@pytest.mark.parametrize(
    "lock",
    [b"", b"\xff", b"[" * 200_000, b"artifacts: [..]", b"artifacts: {mine.txt: x, ../spec.yaml: x}", b"- &a [*a]",
     BAD["alias bomb"][1].encode()],
    ids=["empty", "not UTF-8", "deep", "a folder", "other files", "endless", "bomb"],
)  # fmt: skip
def test_compile_replaces_a_hostile_lock_and_keeps_other_files(lock):
    os.mkdir("out")
    write("out/mine.txt", "mine")
    write("out/lock.yaml", lock)
    done = shell("compile", write("spec.yaml", SPEC), "-o", "out", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("out/mine.txt").read_text() == "mine"
    assert Path("spec.yaml").read_text() == SPEC
    os.unlink("out/mine.txt")
    assert_consistent()


def test_concurrent_compiles_into_one_folder_leave_one_whole_plan():
    write("spec.yaml", SPEC)
    write("facts.yaml", FACTS)
    program = """
import sys
from ratc.cli import main
me = int(sys.argv[1])
options = [[], ["--facts", "facts.yaml", "--set", "resources.num_gpus=2"]][me % 2]
for turn in range(25):
    status = main(["compile", "spec.yaml", "-o", "out", "--seed", str(me), "--batch-size", str(1 + turn % 3), *options])
    assert status == 0
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment}
    running = [subprocess.Popen([sys.executable, "-c", program, str(n)], **quiet) for n in range(4)]
    said = [process.communicate(timeout=HANGS_S)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, said
    assert_consistent()
