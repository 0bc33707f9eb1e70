"""Images in a folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ratc_runtime.data.check import main as check
from ratc_runtime.data.class_folders import ClassFolders
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.tasks import make_task

from tests.unit.ratc_runtime.tasks.classification.test_classification import content, data, lock_of, write


def image(path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4), 90).save(path, **options)


def test_a_class_has_one_number_in_all_splits(tmp_path: Path) -> None:
    for name in ("train/oak/b.png", "train/oak/a.JPG", "train/ash/c.webp", "val/oak/d.png", "test/elm/e.png"):
        image(tmp_path / name, format="PNG")
    (tmp_path / "train/elm").mkdir()
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/oak/.DS_Store").touch()
    train, val, test = (ClassFolders(tmp_path, split, (4, 4), 1, num_classes=3) for split in ("train", "val", "test"))
    assert train.class_names == val.class_names == test.class_names == ["ash", "elm", "oak"]
    assert train.names == ["ash/c.webp", "oak/a.JPG", "oak/b.png"]
    assert [int(train.target(index)) for index in range(3)] == [0, 2, 2]
    assert (int(val[0]["target"]), int(test[0]["target"])) == (2, 1)
    assert val.files(0) == (tmp_path / "val/oak/d.png",)


@pytest.mark.parametrize(
    ("names", "code", "says"),
    [
        (["val/a/b.png"], "R506", "no readable train/"),
        (["train/b.png"], "R506", "no folder of a class"),
        (["train/a/b.png", "train/c/d/e.png"], "R506", "the folder d among its images"),
        (["train/a/b.png"], "R539", "has 1 class(es)"),
        (["train/a/b.png", "val/b/b.png", "test/c/b.png"], "R539", "has 3 class(es)"),
        (["train/1/b.png", "train/2/b.png"], "R591", "has the class 2"),
    ],
)
def test_unsupported_folder_layouts_are_refused(tmp_path: Path, names: list[str], code: str, says: str) -> None:
    for name in names:
        image(tmp_path / name)
    with pytest.raises(RuntimeFinding) as raised:
        ClassFolders(tmp_path, "train", (4, 4), 1, num_classes=2)
    assert raised.value.code == code
    assert says in raised.value.message


def test_class_names_come_from_folders_and_others_are_refused(tmp_path: Path) -> None:
    data(tmp_path)
    opened = {"train": ClassFolders(tmp_path, "train", (4, 4), 1, num_classes=3)}
    unnamed = make_task(lock_of(data__class_names=[f"class {number}" for number in range(3)]))
    unnamed.opened(opened)
    assert unnamed.class_labels == {0: "dark", 1: "light", 2: "mixed"}
    other = make_task(lock_of(data__class_names=["light", "dark", "mixed"]))
    with pytest.raises(RuntimeFinding) as raised:
        other.opened(opened)
    assert raised.value.code == "R539"


def test_the_check_reports_class_counts_and_unusable_files(tmp_path: Path, capfd: Any) -> None:
    folder = data(tmp_path / "data")
    for path in (folder / "val/mixed").iterdir():
        path.unlink()
    exif = Image.Exif()
    exif[0x0112] = 3
    image(folder / "train/dark/turned.jpg", exif=exif)
    Image.new("RGBA", (6, 4), (9, 9, 9, 60)).save(folder / "train/dark/glass.png")
    (folder / "test/light/01.png").write_bytes((folder / "test/light/01.png").read_bytes()[:40])
    (folder / "test/light/notes.txt").touch()
    (folder / "test/dark/copy.png").write_bytes((folder / "train/dark/00.png").read_bytes())
    lock = write(tmp_path / "lock", content())
    arguments = [str(lock), "--data-dir", str(folder), "--all", "--pictures", str(tmp_path / "drawn")]
    assert check(arguments) == 1
    printed, said = capfd.readouterr()
    assert "dark" in printed
    assert "`mixed` never occurs in the 4 samples of val" in said
    assert "R506" in said
    assert "test/light/01.png cannot be decoded" in said
    assert "1 of 14 images of train that were read have an EXIF orientation" in said
    assert "1 of 14 images of train that were read are partly transparent" in said
    assert "light/notes.txt for one" in said
    assert "R578" in said
    with Image.open(tmp_path / "drawn/samples.png") as drawn:
        assert drawn.size[0] > 400
