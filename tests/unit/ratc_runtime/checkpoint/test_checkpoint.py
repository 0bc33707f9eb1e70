"""Checkpoints: which are kept, loaded and written in the background, and the data that they record."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime import checkpoint
from ratc_runtime.checkpoint import Checkpoints, background, files, header, places
from ratc_runtime.checkpoint.places import Place
from ratc_runtime.checkpoint.weights import load_weights
from ratc_runtime.commands.export import export, main
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.engine import make_engine
from ratc_runtime.errors import RuntimeFinding

from tests.helpers.lockfile import write_lock
from tests.processes.test_resume import same


def make(folder: Path, **changes: Any) -> Checkpoints:
    """The checkpoints of `folder/out`, of a real engine with a tiny model."""
    lock = read_lock(write_lock(folder / "compiled", **changes))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    (folder / "out").mkdir(exist_ok=True)
    return Checkpoints(folder / "out", make_engine(lock, model, folder), lock)


def train(checkpoints: Checkpoints, steps: int = 1) -> None:
    engine = checkpoints.engine
    for _ in range(steps):
        engine.module(torch.rand(5, 3)).sum().backward()
        engine.update(None)


def save(checkpoints: Checkpoints, epoch: int, step: int = 0, best: list[int] | None = None, **more: Any) -> bool:
    if not checkpoints.engine.state()["optimizer"]["state"]:
        train(checkpoints)
    numbers = {"train_loss": 0.5, "val_loss": 0.5, "learning_rate": 0.1, "seconds": 1.0}
    history = [{"epoch": number, **numbers} for number in range(1, epoch + 1)]
    progress = {"epoch": epoch, "step": step, "history": history, **more}
    return checkpoints.save(progress, [Place(number, 0) for number in best or []])


def listed(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


# What is kept.


def test_checkpoint_names_sort_by_epoch_and_step() -> None:
    made = [Place(0, 3), Place(0, 12), Place(1, 0), Place(2, 6), Place(3, 0), Place(10, 1), Place(12345, 0)]
    assert [places.place_of(f"{place.name}.pt", ".pt") for place in made] == made
    assert sorted(made) == made
    assert sorted(place.name for place in made[:-1]) == [place.name for place in made[:-1]]
    for name in ("last.pt", "epoch-0001-step-000000", ".epoch-0001-step-000000.pt.new", "epoch-1-step-000000.pt"):
        assert places.place_of(name, ".pt") is None


def test_the_newest_and_best_checkpoints_are_kept_and_linked(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, checkpoint__keep_last=2, checkpoint__keep_best=2)
    for epoch, best in ((1, [1]), (2, [2, 1]), (3, [2, 3, 1]), (4, [2, 3, 4, 1]), (5, [2, 3, 5, 4, 1])):
        assert save(checkpoints, epoch, best=best)
    assert save(checkpoints, 5, 2, best=[2, 3, 5, 4, 1])
    names = ["epoch-0002-step-000000.pt", "epoch-0003-step-000000.pt"]
    names += ["epoch-0005-step-000000.pt", "epoch-0005-step-000002.pt"]
    assert listed(checkpoints) == ["best.pt", *names, "last.pt"]
    assert os.readlink(checkpoints.path("last")) == names[-1]
    assert os.readlink(checkpoints.path("best")) == names[0]


def test_saving_twice_at_one_step_writes_once(tmp_path: Path) -> None:
    checkpoints = make(tmp_path)
    save(checkpoints, 1)
    before = checkpoints.path("last").stat().st_ino
    save(checkpoints, 1, best=[1])
    assert checkpoints.path("best").stat().st_ino == before
    shutil.rmtree(checkpoints.folder)  # and again where somebody has removed it
    assert save(checkpoints, 1)
    assert checkpoints.path("last").exists()


def test_links_missing_after_a_kill_are_restored_for_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = make(tmp_path, checkpoint__keep_last=1)
    save(checkpoints, 1, best=[1])
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_update_links", lambda *_: None)  # as if killed there
        save(checkpoints, 2, best=[2, 1])
    assert os.readlink(checkpoints.path("last")) == "epoch-0001-step-000000.pt"
    again = make(tmp_path, checkpoint__keep_last=1)
    assert again.load_last()["epoch"] == 2
    again.clean_up([Place(2, 0), Place(1, 0)])
    assert listed(again) == ["best.pt", "epoch-0002-step-000000.pt", "last.pt"]
    assert os.readlink(again.path("last")) == os.readlink(again.path("best")) == "epoch-0002-step-000000.pt"


def test_a_checkpoint_that_cannot_be_removed_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    checkpoints = make(tmp_path, checkpoint__keep_last=1)
    monkeypatch.setattr(files, "remove", refuse)
    for epoch in (1, 2, 3):
        assert save(checkpoints, epoch, best=[epoch])
    told = capsys.readouterr().err
    assert told.count("epoch-0001-step-000000.pt is not kept, and cannot be removed: Operation not permitted") == 1
    assert "epoch-0002" not in told


def test_checkpoints_are_ordered_by_step_not_by_file_time(tmp_path: Path) -> None:
    """Times of files go backwards, as after a jump of the clock or a copy."""
    checkpoints = make(tmp_path, checkpoint__keep_last=3, training__epochs=5)
    for epoch in range(1, 6):
        save(checkpoints, epoch)
        for path in checkpoints.folder.glob("epoch-*"):
            os.utime(path, times=(1e9 - 1000 * epoch, 1e9 - 1000 * places.place_of(path.name, ".pt").epoch))
    assert [name for name in listed(checkpoints) if name.startswith("epoch")] == [
        f"epoch-000{epoch}-step-000000.pt" for epoch in (3, 4, 5)
    ]
    assert make(tmp_path, training__epochs=5).load_last()["epoch"] == 5


def test_a_run_continues_from_a_copy_of_last_alone(tmp_path: Path) -> None:
    checkpoints = make(tmp_path)
    save(checkpoints, 2)
    shutil.copytree(checkpoints.folder, tmp_path / "copy", symlinks=False)
    shutil.rmtree(checkpoints.folder)
    checkpoints.folder.mkdir()
    shutil.copy(tmp_path / "copy/last.pt", checkpoints.folder / "last.pt")
    again = make(tmp_path)
    assert again.load_last()["epoch"] == 2
    assert save(again, 3)
    assert os.readlink(again.path("last")) == "epoch-0003-step-000000.pt"


# What is found again.


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    else:
        path.write_bytes({"cut": content[:middle], "empty": b"", "foreign": b"no checkpoint" * 100}[how])


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "foreign"])
def test_a_damaged_newest_checkpoint_is_named_and_the_previous_one_loaded(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = make(tmp_path)
    save(checkpoints, 1)
    before = checkpoint.read(checkpoints.path("last"))
    weights = load_weights(checkpoints.path("last"))
    train(checkpoints)
    save(checkpoints, 2)
    damage(checkpoints.path("epoch-0002-step-000000"), how)
    (checkpoints.folder / ".epoch-0003-step-000000.pt.new").write_bytes(b"half")
    (checkpoints.folder / ".new.epoch-0003-step-000000.pt").write_bytes(b"half")
    again = make(tmp_path)
    train(again)
    assert again.load_last() == before["progress"]
    assert same(dict(again.engine.module.state_dict()), weights)
    said = capsys.readouterr().err
    assert "epoch-0002-step-000000.pt is damaged and passed over" in said
    # It is written again if the run comes to the same place, and what was left half written is gone.
    assert save(again, 2)
    assert make(tmp_path).load_last()["epoch"] == 2
    assert not list(again.folder.glob(".*"))
    for path in again.folder.glob("epoch-*"):
        damage(path, how)
    with pytest.raises(RuntimeFinding, match="R508") as caught:
        make(tmp_path).load_last()
    assert "--fresh" in caught.value.help


def test_a_checkpoint_with_a_read_error_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = make(tmp_path)
    for epoch in (1, 2):
        save(checkpoints, epoch)
    fault_of = files._fault_of

    def unread(path: Path) -> str | None:
        if "0002" in path.name:
            raise OSError(errno.EIO, "Input/output error")
        return fault_of(path)

    monkeypatch.setattr(files, "_fault_of", unread)
    again = make(tmp_path, checkpoint__keep_last=1)
    assert again.load_last()["epoch"] == 1
    assert "it cannot be read (Input/output error)" in capsys.readouterr().err
    save(again, 1, 5)
    assert "epoch-0002-step-000000.pt" in listed(again)


def test_a_damaged_best_checkpoint_falls_back_to_the_next_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = make(tmp_path, checkpoint__keep_last=1, checkpoint__keep_best=2)
    for epoch in (1, 2, 3):
        train(checkpoints)
        save(checkpoints, epoch, best=[2, 1, 3][:epoch])
    assert checkpoints.load_best([Place(2, 0), Place(1, 0)]) == (2, 0)
    damage(checkpoints.path("best"), "flipped")
    assert checkpoints.load_best([Place(2, 0), Place(1, 0)]) == (1, 0)
    damage(checkpoints.path("epoch-0001-step-000000"), "cut")
    assert checkpoints.load_best([Place(2, 0), Place(1, 0)]) is None
    assert "cannot be read" in capsys.readouterr().err
    assert checkpoints.load_best([]) is None


def test_loading_restores_engine_and_random_states(tmp_path: Path) -> None:
    checkpoints = make(tmp_path)
    train(checkpoints, 3)
    save(checkpoints, 1)
    train(checkpoints, 2)
    expected = checkpoints.engine.state()
    random_number, torch_number = random.random(), torch.rand(3)
    again = make(tmp_path)
    again.load_last()
    train(again, 2)
    assert same(again.engine.state(), expected)
    assert random.random() == random_number
    assert torch.equal(torch.rand(3), torch_number)


# In the background.


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    held, begun, write_file = threading.Event(), threading.Event(), files.write_file
    threads = []

    def slow(*arguments: Any) -> None:
        threads.append(threading.current_thread().name)
        begun.set()
        assert held.wait(30)
        write_file(*arguments)

    checkpoints = make(tmp_path, checkpoint__asynchronous=True)
    train(checkpoints)
    expected = background.snapshot(checkpoints.engine.state())
    monkeypatch.setattr(files, "write_file", slow)
    assert save(checkpoints, 1)
    assert begun.wait(30)
    train(checkpoints, 3)  # changes weights and moments in place
    assert not checkpoints.path("last").exists()
    held.set()
    checkpoints.close()
    assert threads == ["checkpoint"]
    content = torch.load(checkpoints.path("last"), weights_only=True)
    assert same({key: content[key] for key in expected}, expected)
    assert not same(content["model"], dict(checkpoints.engine.module.state_dict()))


def test_a_failed_background_save_is_reported_and_training_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = make(tmp_path, checkpoint__asynchronous=True)
    save(checkpoints, 1)
    checkpoints.finish_write()
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_file", full)
        assert save(checkpoints, 2)
        checkpoints._background._thread.join()
        checkpoints.poll()
    said = capsys.readouterr().err
    assert "epoch-0002-step-000000.pt not written: No space left on device; " in said
    assert "epoch-0001-step-000000.pt is kept, training goes on" in said
    assert checkpoints.take_lost() == {Place(2, 0)}
    assert checkpoints.take_lost() == set()
    assert checkpoints.save({"epoch": 3, "step": 0}, [], wait=True)
    assert "checkpoints can be written again" in capsys.readouterr().err


def test_a_background_save_raises_errors_other_than_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a bug")

    checkpoints = make(tmp_path, checkpoint__asynchronous=True)
    monkeypatch.setattr(files, "write_file", broken)
    save(checkpoints, 1)
    with pytest.raises(ValueError, match="a bug"):
        checkpoints.close()


def test_a_snapshot_keeps_shared_tensors_shared(tmp_path: Path) -> None:
    tied = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    state = tied.state_dict()
    copied = background.snapshot(state)
    assert copied["0.weight"] is copied["1.weight"]
    assert copied["0.weight"].data_ptr() != state["0.weight"].data_ptr()
    assert copied._metadata == state._metadata
    assert list(copied) == list(state)


# What they say of themselves.


def test_r518_names_the_differences_of_a_changed_lock(tmp_path: Path) -> None:
    save(make(tmp_path), 1)
    assert make(tmp_path, checkpoint__keep_last=5, data__num_workers=1, data__prefetch_factor=2).load_last()
    with pytest.raises(RuntimeFinding, match="R518") as caught:
        make(tmp_path, training__learning_rate=0.5, seed=7, model__args={"input_features": 1}).load_last()
    note = caught.value.note.splitlines()
    assert "training.learning_rate: 0.003 -> 0.5" in note
    assert "seed: 42 -> 7" in note
    assert "model.args.feature_dims: 16 -> not there" in note
    assert not any("epochs" in line for line in note)
    assert "epoch-0001-step-000000.pt" in caught.value.message


def test_a_checkpoint_records_its_lock_world_and_progress(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, model__args={"since": "2026-01-01", "width": 4, "rate": 1e-5})
    save(checkpoints, 3, 2)
    for path in (checkpoints.path("last"), checkpoints.path("epoch-0003-step-000002")):
        found = checkpoint.read(path)
        assert (found["version"], found["world_size"]) == (2, 1)
        assert (found["progress"]["epoch"], found["progress"]["step"]) == (3, 2)
        assert found["lock"]["model"]["args"]["rate"] == 1e-5
        lock = checkpoint.lock_of(found)
        assert lock == checkpoints.lock
        assert isinstance(lock, Lock)
        assert lock.fingerprint() == found["fingerprint"]
    damage(checkpoints.path("epoch-0003-step-000002"), "flipped")
    for path in (checkpoints.path("last"), tmp_path, tmp_path / "none.pt"):
        with pytest.raises(RuntimeFinding, match="R508"):
            checkpoint.read(path)


def test_r508_names_the_keys_that_an_older_lock_lacks(tmp_path: Path) -> None:
    content = make(tmp_path).lock.model_dump()
    del content["checkpoint"]["keep_last"]
    with pytest.raises(RuntimeFinding, match="R508") as caught:
        checkpoint.lock_of({"lock": content})
    assert "missing: keep_last" in caught.value.note


def test_r508_for_a_checkpoint_of_version_1(tmp_path: Path) -> None:
    checkpoints = make(tmp_path)
    checkpoints.folder.mkdir()
    torch.save({"version": 1, "fingerprint": "a", **checkpoints.engine.state()}, checkpoints.path("last"))
    for refused in (checkpoints.load_last, lambda: checkpoint.read(checkpoints.path("last"))):
        with pytest.raises(RuntimeFinding, match="R508") as caught:
            refused()
        assert caught.value.note == header.OLDER


def test_exported_weights_carry_their_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors import safe_open

    checkpoints = make(tmp_path)
    train(checkpoints)
    save(checkpoints, 1, 4)
    output = tmp_path / "model.safetensors"
    command = [str(checkpoints.path("last")), "-o", str(output)]
    assert main(command) == 0
    assert same(load_weights(output), dict(checkpoints.engine.module.state_dict()))
    assert same(load_weights(checkpoints.path("last")), load_weights(output))
    with safe_open(output, "pt") as file:
        said = file.metadata()
    assert said["experiment_name"] == "tiny"
    assert (said["epoch"], said["step"]) == ("1", "4")
    assert said["fingerprint"] == checkpoints.lock.fingerprint()
    assert '"feature_dims": 16' in said["model"]
    before = output.read_bytes()
    assert main(command) == 1
    assert "error[R520]" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert len(output.read_bytes()) == len(before)
    with pytest.raises(RuntimeFinding, match="R520"):
        export(checkpoints.path("last"), tmp_path / "nowhere/model.safetensors")
    with pytest.raises(RuntimeFinding, match="R520") as caught:
        export(checkpoints.path("last"), tmp_path / "model.pt")
    assert caught.value.help == "name it model.safetensors"
    damage(output, "cut")
    with pytest.raises(RuntimeFinding, match="R508"):
        load_weights(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compiled", "model.safetensors", "out"]
