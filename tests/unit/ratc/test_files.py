"""File safety: symlinks are not followed, and only temporary files of dead processes are removed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ratc import cache_folder, files
from ratc.cli import main

SPEC = "experiment_name: demo\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 4}\ntraining: {batch_size: 2}\n"
ARRAY = SPEC + "sweep: {grid: {seed: [1, 2]}}\n"


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    Path("other").mkdir()
    for name in ("lock.yaml", "deepspeed.json", "accelerate.yaml", "run.sh", "keep.txt"):
        Path("other", name).write_text("other's\n")
    return tmp_path


def untouched() -> bool:
    return sorted(os.listdir("other")) == [
        "accelerate.yaml",
        "deepspeed.json",
        "keep.txt",
        "lock.yaml",
        "run.sh",
    ] and all(path.read_text() == "other's\n" for path in Path("other").iterdir())


def compile_array() -> int:
    Path("spec.yaml").write_text(ARRAY)
    return main(["compile", "spec.yaml", "-o", "out", "--target", "slurm"])


@pytest.mark.parametrize("name", ["zz", "0", "seed=1"])
def test_symlink_among_the_points_is_not_followed(working_folder, name):
    assert compile_array() == 0
    os.symlink("../../other", f"out/points/{name}")
    assert main(["compile", "spec.yaml", "-o", "out", "--target", "slurm"]) == 0
    Path("spec.yaml").write_text(SPEC)
    assert main(["compile", "spec.yaml", "-o", "out", "--target", "slurm"]) == 0
    assert untouched()


def test_symlinked_points_folder_or_point_is_refused(working_folder, capsys):
    assert compile_array() == 0
    points = sorted(os.listdir("out/points"))
    for link in ("out/points", f"out/points/{points[0]}"):
        os.rename(link, "moved")
        os.symlink(os.path.abspath("other"), link)
        capsys.readouterr()
        assert main(["compile", "spec.yaml", "-o", "out", "--target", "slurm", "--epochs", "3"]) == 1
        said = capsys.readouterr().err
        assert "R403" in said
        assert "link" in said
        assert untouched()
        os.unlink(link)
        os.rename("moved", link)


@pytest.mark.parametrize("name", ["run.sh", "lock.yaml", "accelerate.yaml"])
def test_symlink_in_place_of_a_file_is_replaced(working_folder, name):
    os.makedirs("out")
    os.symlink(f"../other/{name}", f"out/{name}")
    assert main(["compile", "spec.yaml", "-o", "out"]) == 0
    assert untouched()
    assert not os.path.islink(f"out/{name}")


@pytest.mark.parametrize("kind", ["fifo", "zero"])
def test_fifo_or_device_in_place_of_a_file_is_not_read(working_folder, kind):
    os.makedirs("out")
    os.mkfifo("out/run.sh") if kind == "fifo" else os.symlink("/dev/zero", "out/run.sh")
    assert main(["compile", "spec.yaml", "-o", "out"]) == 0
    assert Path("out/run.sh").is_file()


def test_symlink_in_place_of_the_temporary_file_is_not_followed(working_folder, monkeypatch):
    monkeypatch.setattr(files, "mark", lambda: "ratc-mark")
    os.symlink("other/keep.txt", ".new.txt.ratc-mark")
    files.replace("new.txt", b"new")
    assert untouched()
    assert Path("new.txt").read_bytes() == b"new"


def dead_process_id() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("form", [".lock.yaml.ratc-{pid}", ".lock.yaml.ratc-{pid}-3@{host}"])
def test_temporary_files_of_a_dead_process_are_removed_by_the_next_run(working_folder, form):
    host = files._host()
    leftover = Path("out") / form.format(pid=dead_process_id(), host=host)
    living = Path("out") / form.format(pid=os.getppid(), host=host)
    elsewhere = Path("out") / f".lock.yaml.ratc-{dead_process_id()}-0@another-host"
    mine = Path("out") / ".notes.ratc-x"
    leftover.parent.mkdir()
    for path in (leftover, living, elsewhere, mine):
        path.write_text("half")
    assert main(["compile", "spec.yaml", "-o", "out"]) == 0
    assert not leftover.exists()
    assert living.exists()
    assert elsewhere.exists()
    assert mine.exists()
    os.utime(elsewhere, (0, 0))
    assert main(["compile", "spec.yaml", "-o", "out"]) == 0
    assert not elsewhere.exists()


def test_locked_temporary_file_is_not_removed(working_folder):
    path = f".x.ratc-{dead_process_id()}-0@{files._host()}"
    code = f"import fcntl, time; f = open({path!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    code += "; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        files.clear(".")
        assert os.path.exists(path)
        holder.kill()
    files.clear(".")
    assert not os.path.exists(path)


def test_files_of_a_killed_compile_are_removed_by_the_next_one(working_folder):
    code = (
        "import os, signal, sys\nfrom ratc import files\nfrom ratc.cli import main\n"
        "real = os.replace\n"
        "def kill(*words): os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.os.replace = kill\nmain(['compile', 'spec.yaml', '-o', 'out'])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert [name for name in os.listdir("out") if "ratc-" in name]
    assert main(["compile", "spec.yaml", "-o", "out"]) == 0
    assert sorted(os.listdir("out")) == ["accelerate.yaml", "lock.yaml", "run.sh"]


SMALL = [
    "--image-size",
    "64",
    "--batch-size",
    "1",
    "--set",
    "model.feature_dims=16",
    "--set",
    "model.num_heads=2",
    "--set",
    "model.num_blocks=1",
]
WRITING = {
    "init": ["init", "there"],
    "init --force": ["init", "there", "--force"],
    "import": ["import", "ds.json", "-o", "there"],
    "import --force": ["import", "ds.json", "-o", "there", "--force"],
    "probe": ["probe", "local", "-o", "there", "--force"],
    "fit": ["fit", "spec.yaml", "--card", "h100", "--plot", "there.svg", *SMALL],
}


@pytest.mark.parametrize("words", WRITING.values(), ids=WRITING)
def test_interrupted_command_keeps_existing_files(working_folder, monkeypatch, words):
    """Ctrl-C when the bytes are on their way, before they have their name."""
    Path("ds.json").write_text('{"train_batch_size": 8}')
    place = Path("there.svg" if words[0] == "fit" else "there")
    if words[-1] == "--force" or words[0] == "fit":
        place.write_text("before\n")
    before = sorted(os.listdir())

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    assert main(words) == 130
    assert sorted(os.listdir()) == before
    assert not place.exists() or place.read_text() == "before\n"


@pytest.mark.parametrize("links", [True, False])
def test_file_created_during_a_write_is_not_replaced_without_force(working_folder, monkeypatch, links):
    """Also not one that came to be while the bytes were written."""
    real = os.fsync

    def meanwhile(handle):
        real(handle)
        Path("there").write_text("other's\n")

    def refuse(old, new):
        raise PermissionError

    if not links:
        monkeypatch.setattr("ratc.files.os.link", refuse)
    files.replace("new", b"mine", force=False)
    assert Path("new").read_bytes() == b"mine"
    monkeypatch.setattr("ratc.files.os.fsync", meanwhile)
    for _ in range(2):
        with pytest.raises(FileExistsError):
            files.replace("there", b"mine", force=False)
        assert Path("there").read_text() == "other's\n"
    assert not [name for name in os.listdir() if "ratc-" in name]


def test_device_is_written_to_and_not_replaced(working_folder, capfd):
    files.replace("/dev/stdout", b"text\n")
    assert capfd.readouterr().out == "text\n"
    files.replace("/dev/null", b"text\n")
    assert Path("/dev/null").is_char_device()


def test_temporary_folder_is_private_and_dead_ones_are_removed(working_folder, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(working_folder))
    left = working_folder / f"ratc-{dead_process_id()}-0@{files._host()}-abcdefgh"
    (left / "inner").mkdir(parents=True)
    with files.temporary_folder() as folder:
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert not left.exists()
        files.clear(str(working_folder))
        assert os.path.exists(folder)
    assert not os.path.exists(folder)


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/none"])
def test_unwritable_home_prints_one_line(working_folder, monkeypatch, capsys, place):
    monkeypatch.delenv("RATC_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", place)
    for _ in range(2):
        cache_folder.keep(os.path.join(cache_folder.folder("traces"), "a.json"), b"{}", 3)
    assert capsys.readouterr().err.count("ratc: cannot write the cache") == 1


def test_relative_xdg_cache_home_is_ignored(working_folder, monkeypatch):
    monkeypatch.delenv("RATC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "beside")
    monkeypatch.setenv("HOME", str(working_folder))
    assert cache_folder.folder("traces") == str(working_folder / ".cache/ratc/traces")
    monkeypatch.setenv("XDG_CACHE_HOME", str(working_folder / "caches"))
    assert cache_folder.folder("traces") == str(working_folder / "caches/ratc/traces")


def test_unfinished_cache_entries_are_removed(working_folder, monkeypatch):
    monkeypatch.setenv("RATC_CACHE", str(working_folder / "cache"))
    place = Path(cache_folder.folder("traces"))
    place.mkdir(parents=True)
    (place / "tmpold.part").write_text("half")
    (place / "tmpnew.part").write_text("half")
    (place / f".abc.ratc-{dead_process_id()}-0@{files._host()}").write_text("half")
    os.utime(place / "tmpold.part", (0, time.time() - 2 * 86_400))
    cache_folder.keep(str(place / "a.json"), b"{}", 3)
    assert sorted(os.listdir(place)) == ["a.json", "tmpnew.part"]


def test_symlinked_trials_folder_of_a_study_is_refused(working_folder, capsys):
    spec = SPEC + "tuning: {trials: 2, backend: array, search_space: {training.learning_rate: [0.1, 0.2]}}\n"
    Path("spec.yaml").write_text(spec)
    os.makedirs("outputs/demo/study")
    os.symlink(os.path.abspath("other"), "outputs/demo/study/trials")
    assert main(["tune", "spec.yaml"]) == 1
    assert "R451" in capsys.readouterr().err
    assert untouched()
