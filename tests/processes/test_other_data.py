"""Changed data under the same lock are reported when a run continues, and when it is already finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ratc_runtime.data import record
from ratc_runtime.data.isic import IsicSegmentation

from tests.helpers.lockfile import results, run_training, write_data, write_lock

#: Asks for a stop after the first epoch, once.
STOPPING = """
from pathlib import Path
from ratc_runtime.callbacks import Callback

class Stop(Callback):
    def epoch(self, run, record):
        if not Path("stopped").exists():
            Path("stopped").touch()
            Path("out/STOP").touch()
"""


def stopped_run(folder: Path) -> Path:
    """Train one epoch of two, and stop; return the lock."""
    write_data(folder / "data", train=10)
    (folder / "mine.py").write_text(STOPPING)
    lock = write_lock(folder / "compiled", training__epochs=3, training__callbacks=["mine:Stop"])
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert "stopped as asked" in done.stdout
    return lock


def add_a_sample(data: Path) -> None:
    shutil.copy(data / "images/train0.png", data / "images/new.png")
    shutil.copy(data / "masks/train0_segmentation.png", data / "masks/new_segmentation.png")
    splits = json.loads((data / "splits.json").read_text())
    splits["train"].append("new")
    (data / "splits.json").write_text(json.dumps(splits))


def remove_a_sample(data: Path) -> None:
    splits = json.loads((data / "splits.json").read_text())
    splits["val"].remove("val1")
    (data / "splits.json").write_text(json.dumps(splits))


def swap_masks(data: Path) -> None:
    one, other = (data / f"masks/train{number}_segmentation.png" for number in (1, 2))
    one.rename(data / "masks/x.png")
    other.rename(one)
    (data / "masks/x.png").rename(other)


def empty_a_mask(data: Path) -> None:
    Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(data / "masks/test0_segmentation.png")


def reorder(data: Path) -> None:
    splits = json.loads((data / "splits.json").read_text())
    splits["train"].reverse()
    (data / "splits.json").write_text(json.dumps(splits))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "added": (add_a_sample, "train: new added"),
    "removed": (remove_a_sample, "val: val1 removed"),
    "another mask": (empty_a_mask, "test: masks/test0_segmentation.png has another size"),
    "another order": (reorder, "train: the samples are in another order"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_that_continues_reports_changed_data(tmp_path: Path, name: str) -> None:
    lock = stopped_run(tmp_path)
    change, said = CHANGES[name]
    change(tmp_path / "data")
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch" in done.stdout
    assert "[R590]" in done.stderr
    assert said in done.stderr
    (noted,) = results(tmp_path / "out")["data_changes"]
    assert said in noted["changes"]
    assert noted["epoch"] == 1
    # What was told once is the state of things.
    again = run_training(lock)
    assert "already finished" in again.stdout
    assert "R590" not in again.stderr


def test_a_finished_run_reports_changed_data(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    lock = write_lock(tmp_path / "compiled", training__epochs=1)
    assert run_training(lock).returncode == 0
    assert "R590" not in run_training(lock).stderr
    add_a_sample(tmp_path / "data")
    again = run_training(lock)
    assert again.returncode == 0
    assert "[R590] the data have changed since out was finished: lists: splits.json has another size" in again.stderr
    shutil.rmtree(tmp_path / "data")
    assert "R590" not in run_training(lock).stderr


def test_changed_data_are_checked_as_at_the_first_start(tmp_path: Path) -> None:
    lock = stopped_run(tmp_path)
    for path in (tmp_path / "data/masks").glob("val*"):
        Image.fromarray(np.full((32, 32), 7, np.uint8)).save(path)
    done = run_training(lock)
    assert done.returncode == 1
    assert "R590" in done.stderr
    assert "error[R570]" in done.stderr


def test_a_started_epoch_begins_again_if_the_samples_changed(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=12)
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "from ratc_runtime.data.isic import IsicSegmentation\n"
        "class Own(IsicSegmentation):\n"
        "    def __init__(self, data_dir, split):\n"
        "        super().__init__(data_dir, split, (32, 32), 1)\n"
        "        self.split, self.read = split, 0\n"
        "    def __getitem__(self, index):\n"
        "        self.read += 1\n"
        "        # Read before training: a look at 12 of them.\n"
        "        if self.split == 'train' and self.read > 12 + 8 and not Path('stopped').exists():\n"
        "            Path('stopped').touch()\n"
        "            Path('out/STOP').touch()\n"
        "        return super().__getitem__(index)\n"
    )
    lock = write_lock(tmp_path / "compiled", training__epochs=1, data__dataset="mine:Own")
    stopped = run_training(lock)
    assert "after epoch 0 of 1, step 3 of 3" in stopped.stdout or "step 2 of 3" in stopped.stdout, stopped.stderr
    splits = json.loads((tmp_path / "data/splits.json").read_text())
    splits["train"] = splits["train"][:4]
    (tmp_path / "data/splits.json").write_text(json.dumps(splits))
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert "epoch 1 begins again" in done.stderr
    assert "step 1/1" in done.stdout


# The record itself.


class Named:
    """A data set of the user's own: names, and files if it says so."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)


def described(folder: Path) -> dict[str, Any]:
    datasets = {split: IsicSegmentation(folder, split, (32, 32), 1) for split in ("train", "val", "test")}
    return record.describe(datasets, folder, [])


def test_a_copy_of_the_data_is_not_reported_as_changed(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    before = described(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copyfile)
    assert record.changes(before, described(tmp_path / "copy")) == []
    assert record.changed_files(before, tmp_path / "copy") == []
    assert record.changes(before, json.loads(json.dumps(described(tmp_path / "data")))) == []


def test_files_of_one_size_are_distinguished_by_time_or_checksum(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    before = described(tmp_path / "data")
    path = tmp_path / "data/images/train3.png"
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes(20))
    os.utime(path, ns=(0, 0))
    (said,) = record.changes(before, described(tmp_path / "data"))
    assert said in (
        "train: images/train3.png was written again",
        "train: images/train3.png has other content",
    )


def test_a_copy_of_the_same_size_with_other_content_is_reported(tmp_path: Path) -> None:
    for folder, value in (("one", 1), ("other", 2)):
        (tmp_path / folder).mkdir()
        for number in range(20):
            np.save(tmp_path / folder / f"{number}.npy", np.full(9, value))
    blind = {"train": Named([str(number) for number in range(20)])}
    before = record.describe(blind, tmp_path / "one", [tmp_path / "out"])
    said = record.changes(before, record.describe(blind, tmp_path / "other", [tmp_path / "out"]))
    assert len(said) == 1
    assert "have other content" in said[0]


def test_a_folder_in_which_the_run_writes_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"1")
    blind = {"train": Named(["a"])}
    assert record.describe(blind, tmp_path, [tmp_path / "out"])["files"] == {}
    assert record.describe(blind, tmp_path, [])["files"] != {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 9, "splits": {}, "files": {}}'])
def test_an_unreadable_record_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / record.FILE).write_text(text)
    assert record.read(tmp_path) is None


def test_of_many_samples_the_same_subset_is_compared_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MOST_SAMPLES", 4)
    monkeypatch.setattr(record, "MOST_NAMES", 5)
    write_data(tmp_path / "data", train=12)
    before = described(tmp_path / "data")
    assert before["splits"]["train"]["names"] is None
    assert len(before["files"]["train"]) == 8
    add_a_sample(tmp_path / "data")
    (said,) = record.changes(before, described(tmp_path / "data"))
    assert said == "train: other samples: 13, and they were 12"
