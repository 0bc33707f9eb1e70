"""`ratc check` on folders that `ratc compile` wrote: each test causes one finding."""

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest

from ratc.cli import main
from tests.places import CASES, ROOT
from tests.product.test_cases import run_case

SPEC = """experiment_name: demo
training: {batch_size: 8}
data: {data_dir: data}
resources: {num_gpus: 0, cpus: 4}
"""
#: One of each kind: two engines, facts and --set, both schedulers, arrays.
KINDS = ("product-document-a100x8", "lsf-array", "slurm-cpu-two-nodes", "options-and-merge-keys", "v100-fp16")


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    assert main(["compile", "spec.yaml"]) == 0
    capsys.readouterr()
    return tmp_path / "compiled/demo/local"


def check(capsys, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["check", *arguments])
    said = capsys.readouterr()
    return status, said.err + said.out


def test_check_of_a_fresh_compile_finds_nothing_and_writes_nothing(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert check(capsys) == (0, "1 compiled spec checked: none differs\n")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_check_follows_a_link_to_a_compiled_folder_and_a_link_of_the_outputs_place(folder, tmp_path, capsys):
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "link").symlink_to(folder)
    assert check(capsys, "other/link") == (0, "1 compiled spec checked: none differs\n")
    Path("spec.yaml").write_text(SPEC.replace("8", "4"))
    assert "`spec.yaml` changed since `compiled/demo/local/lock.yaml` was compiled" in check(capsys, "other/link")[1]
    Path("spec.yaml").write_text(SPEC)
    # `compiled` on another disk: the spec is beside the link.
    shutil.move("compiled", elsewhere / "compiled")
    Path("compiled").symlink_to(elsewhere / "compiled")
    assert main(["compile", "spec.yaml"]) == 0
    assert check(capsys, "compiled") == (0, "1 compiled spec checked: none differs\n")


def test_check_finds_nothing_in_the_specs_of_this_repository(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert check(capsys, "specs")[0] == 0


def test_changed_spec_is_reported_once_with_the_compile_command(folder, capsys):
    Path("spec.yaml").write_text(SPEC.replace("8", "4"))
    status, said = check(capsys)
    assert status == 1
    assert "`spec.yaml` changed since `compiled/demo/local/lock.yaml` was compiled" in said
    assert "cd compiled/demo/local && ratc compile ../../../spec.yaml --target local" in said
    assert "R404" not in said
    assert main(["compile", "spec.yaml", "--check"]) == 1
    assert "R425" in capsys.readouterr().err


def test_edited_script_is_reported_with_the_line_that_differs(folder, capsys):
    text = (folder / "run.sh").read_text().splitlines()
    text[4] += " # mine"
    (folder / "run.sh").write_text("\n".join(text) + "\n")
    status, said = check(capsys)
    assert status == 1
    assert "R426" in said
    assert "only line 5 differs" in said
    assert "compiled/demo/local/run.sh:5:1" in said


@pytest.mark.parametrize("name", ["run.sh", "lock.yaml", "accelerate.yaml"])
def test_missing_compiled_file_is_reported_once(folder, name, capsys):
    if not (folder / name).exists():
        pytest.skip("this plan has no such file")
    (folder / name).unlink()
    status, said = check(capsys)
    assert status == 1
    assert said.count(f"`compiled/demo/local/{name}` is missing") == 1


def test_deleted_or_renamed_spec_is_reported(folder, capsys):
    Path("spec.yaml").rename("new name ü.yaml")
    status, said = check(capsys)
    assert (status, "R427" in said, "does not exist any more" in said) == (1, True, True)
    Path("new name ü.yaml").write_text(SPEC.replace("demo", "other"))
    assert main(["compile", "new name ü.yaml"]) == 0
    assert "2 compiled specs checked: 1 differs" in check(capsys)[1]
    assert check(capsys, "compiled/other")[0] == 0


def test_folder_of_a_renamed_experiment_is_reported_as_left_over(folder, capsys):
    Path("spec.yaml").write_text(SPEC.replace("demo", "other"))
    status, said = check(capsys)
    assert status == 1
    assert "`compiled/demo/local` is left over" in said


def test_lock_of_another_ratc_version_is_reported(folder, capsys):
    lock = folder / "lock.yaml"
    text = lock.read_text().replace('ratc_version: "0.1.0"', 'ratc_version: "0.0.9"')
    lock.write_text(text)
    status, said = check(capsys)
    assert (status, "warning[R428]" in said, "ratc 0.0.9" in said) == (0, True, True)
    assert check(capsys, "--strict")[0] == 1
    lock.write_text(text.replace("seed: ", "seed: 1"))
    status, said = check(capsys)
    assert (status, "error[R428]" in said, "R404" in said) == (1, True, False)
    lock.write_text(text.replace("lock_version: 1", "lock_version: 2"))
    assert "lock of version 2, from a newer ratc" in check(capsys)[1]


def test_check_warns_if_the_plan_depends_on_this_machines_hardware(folder, capsys):
    Path("spec.yaml").write_text(SPEC.replace(", cpus: 4", ""))
    assert main(["compile", "spec.yaml"]) == 0
    status, said = check(capsys)
    assert (status, "warning[R429]" in said) == (0, True)
    assert check(capsys, "--this-machine")[1] == "1 compiled spec checked: none differs\n"
    (folder / "run.sh").write_text("")
    status, said = check(capsys)
    assert (status, "R426" in said) == (1, True)


def test_left_over_script_of_another_target_is_reported(folder, capsys):
    (folder / "job.sbatch").write_text("#!/bin/sh\n# Compiled by ratc from ../x.yaml: review it, do not edit it.\n")
    status, said = check(capsys)
    assert status == 1
    assert "job.sbatch` belongs to" in said


@pytest.mark.parametrize("text", [b"\xff", b"<<<<<<< ours\nlock_version: 1\n", b"lock_version: 1\n"])
def test_unreadable_lock_is_reported(folder, text, capsys):
    for path in folder.iterdir():
        path.unlink()
    (folder / "lock.yaml").write_bytes(b"# Compiled by ratc from x\n" + text)
    assert check(capsys)[0] == 1


def test_check_ignores_shell_variables_and_repeats_the_recorded_options(folder, capsys, monkeypatch):
    monkeypatch.setenv("RAT_SEED", "7")
    assert check(capsys)[0] == 0
    monkeypatch.chdir("/")
    assert check(capsys, str(folder))[0] == 0
    monkeypatch.chdir(folder.parent.parent.parent)
    assert main(["compile", "spec.yaml", "--epochs", "3", "--debug", "--set", "training.betas=[0.8, 0.9]"]) == 0
    monkeypatch.delenv("RAT_SEED")
    status, said = check(capsys)
    assert status == 0, said


def test_check_terminates_on_symlink_loops_and_deep_folders(folder, capsys):
    deep = Path("/".join("d" * 30))
    deep.mkdir(parents=True)
    (deep / "up").symlink_to(folder, target_is_directory=True)
    shutil.copytree("compiled", deep / "compiled")
    shutil.copy("spec.yaml", deep)
    assert check(capsys)[1] == "2 compiled specs checked: none differs\n"


def test_check_waits_for_a_running_compile(folder, capsys):
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    status = []
    checking = threading.Thread(target=lambda: status.append(main(["check"])))
    checking.start()
    checking.join(0.3)
    assert not status
    os.close(handle)
    checking.join(60)
    assert status == [0]


def test_check_of_a_missing_path_exits_with_2(capsys):
    assert check(capsys, "nowhere-at-all")[0] == 2


@pytest.mark.parametrize("case", KINDS)
def test_changed_byte_in_any_compiled_file_is_reported(case, tmp_path, capsys, monkeypatch):
    run_case(CASES / case, tmp_path / "case", capsys, monkeypatch)
    status, said = check(capsys)
    assert status == 0, said
    for path in [path for path in sorted(Path("out").rglob("*")) if path.is_file()]:
        good = path.read_bytes()
        for at in (3, len(good) // 3, len(good) - 2):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            status, said = check(capsys)
            assert "[R" in said, (path, at)
        path.write_bytes(good)


def test_deleted_facts_file_is_named_as_the_cause(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text("experiment_name: demo\ntraining: {batch_size: 8}\ndata: {data_dir: data}\n")
    Path("facts.yaml").write_text("gpus_per_node: 0\ncpus: 4\nmemory: 16GB\n")
    assert main(["compile", "spec.yaml", "--facts", "facts.yaml"]) == 0
    Path("facts.yaml").unlink()
    capsys.readouterr()
    assert main(["check"]) == 1
    said = capsys.readouterr().err
    assert "error[R425]: `facts.yaml` is gone since" in said
    assert "error[R001]" in said


def test_edited_script_is_reported_even_if_the_spec_has_errors(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        "experiment_name: demo\ntraining: {batch_size: 8}\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 4}\n"
    )
    Path("spec.yaml").write_text(text)
    assert main(["compile", "spec.yaml"]) == 0
    Path("spec.yaml").write_text(text + "<<<<<<< ours\nseed: 1\n=======\nseed: 2\n>>>>>>> theirs\n")
    script = Path("compiled/demo/local/run.sh")
    script.write_text(script.read_text() + "echo more\n")
    capsys.readouterr()
    assert main(["check"]) == 1
    said = capsys.readouterr().err
    assert {code for code in ("R009", "R425", "R426") if f"error[{code}]" in said} == {"R009", "R425", "R426"}


def test_added_or_removed_overlay_is_named_as_the_cause(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(
        "experiment_name: demo\ntraining: {batch_size: 8}\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 4}\n"
    )
    overlay = Path("slurm_spec.yaml")
    for before, after, words in ((None, "seed: 1\n", "came into use"), ("seed: 1\n", None, "went out of use")):
        for text in (before, after):
            overlay.unlink(missing_ok=True)
            if text:
                overlay.write_text(text)
            if text == before:
                assert main(["compile", "spec.yaml", "--target", "slurm"]) == 0
        capsys.readouterr()
        assert main(["check"]) == 1
        said = capsys.readouterr().err
        assert "error[R425]: `slurm_spec.yaml`" in said
        assert words in said


@pytest.mark.parametrize("text", ["", "hello\n"])
def test_overwritten_lock_is_reported(folder, text, capsys):
    Path("compiled/demo/local/lock.yaml").write_text(text)
    assert main(["check"]) == 1
    err = capsys.readouterr().err
    assert "error[R004]" in err
    assert "compiled/demo/local/lock.yaml" in err


@pytest.mark.parametrize("least", [2, 4])
@pytest.mark.parametrize("way", ["--nodes", "--set", "RAT_NODES"])
def test_a_range_of_nodes_that_lies_over_the_spec_is_in_the_command_of_the_lock(
    folder, capsys, monkeypatch, way, least
):
    text = f"{{min: {least}, max: 4}}"
    options = {"--nodes": ["--nodes", text], "--set": ["--set", f"resources.nodes={text}"]}.get(way, [])
    if not options:
        monkeypatch.setenv(way, text)
    options += ["--batch-size", "2", "--set", "training.target_batch_size=8", "--walltime", "1:00:00"]
    shutil.rmtree(folder.parent)
    assert main(["compile", "spec.yaml", "--target", "slurm", *options]) == 0
    monkeypatch.delenv("RAT_NODES", raising=False)
    assert check(capsys)[1].endswith("1 compiled spec checked: none differs\n")


def test_a_named_folder_without_compiled_specs_is_a_mistake(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "typo").mkdir()
    status, said = check(capsys, "compiled", "typo")
    assert (status, said) == (2, "ratc check: `typo` holds no compiled folder: `ratc compile` makes them\n")
    monkeypatch.chdir(tmp_path / "typo")
    assert check(capsys) == (0, "0 compiled specs checked: none differs\n")


def test_a_folder_that_cannot_be_listed_is_named(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "hidden").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("hidden"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may list every folder
    status, said = check(capsys)
    assert (status, said.splitlines()) == (
        0,
        ["ratc check: cannot look into `./hidden`: Permission denied", "1 compiled spec checked: none differs"],
    )
    assert check(capsys, "--strict")[0] == 2
