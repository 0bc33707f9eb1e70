"""Images and masks in folders: the names in splits.json, and files with similar names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from ratc_runtime.data.folders import find_files
from ratc_runtime.data.sources import open_split
from ratc_runtime.errors import RuntimeFinding

from tests.unit.ratc_runtime.data.test_survey import lock_with, look


@pytest.mark.parametrize(("folder", "lacking"), [("masks", 4), ("images", 2)])
def test_samples_without_a_file_are_counted_and_the_first_named(project: Path, folder: str, lacking: int) -> None:
    ending = "_segmentation" if folder == "masks" else ""
    for number in range(lacking):
        (project / f"data/{folder}/train{number}{ending}.png").unlink()
    with pytest.raises(RuntimeFinding, match="R506") as raised:
        find_files(project / "data", "train", (".png",), (".png",), skip_missing=False)
    first = [f"{folder}/train{number}{ending}.png" for number in range(lacking)]
    told = ", ".join(first) if lacking < 4 else f"{', '.join(first[:3])}, …"
    assert raised.value.message == f"{lacking} of 10 samples of split train lack a file: {told}"


def test_samples_with_two_files_are_counted(project: Path) -> None:
    for number in range(2):
        path = project / f"data/images/train{number}.png"
        shutil.copy(path, path.with_suffix(".PNG"))
    with pytest.raises(RuntimeFinding, match="R506") as raised:
        find_files(project / "data", "train", (".png",), (".png",), skip_missing=False)
    assert raised.value.message == "2 samples of split train have several files: train0, train1"


@pytest.mark.parametrize(
    ("folder", "old", "new", "says"),
    [
        ("images", "train0.png", "train0.tif", "another ending"),
        ("images", "train0.png", "Train0.png", "capital letters"),
        ("masks", "train0_segmentation.png", "train0_segmentation.jpg", "another ending"),
    ],
)
def test_a_file_with_a_similar_name_is_suggested(project: Path, folder: str, old: str, new: str, says: str) -> None:
    (project / "data" / folder / old).rename(project / "data" / folder / new)
    with pytest.raises(RuntimeFinding, match=r"R506.*train0") as raised:
        look(project / "data")
    assert says in raised.value.note
    assert new in raised.value.note


@pytest.mark.parametrize("suffix", [".PNG", ".Jpg", ".JPEG"])
def test_file_suffixes_may_be_upper_case(project: Path, suffix: str) -> None:
    image = project / "data/images/train0.png"
    Image.open(image).convert("RGB").save(image.with_suffix(suffix))
    image.unlink()
    mask = project / "data/masks/train0_segmentation.png"
    mask.rename(mask.with_suffix(".PNG"))
    look(project / "data")


@pytest.mark.parametrize("second", ["images/train0.jpg", "images/train0.PNG", "masks/train0_segmentation.PNG"])
def test_a_sample_with_two_files_is_refused_with_both_names(project: Path, second: str) -> None:
    (project / "data" / second).write_bytes(b"")
    with pytest.raises(RuntimeFinding, match=f"R506.*train0 of split train has 2 files in {second[:5]}") as raised:
        look(project / "data")
    assert Path(second).name in raised.value.note
    assert open_split(lock_with(data__on_bad_sample="skip"), project / "data", "train").missing == ["train0"]


def test_system_files_are_not_read_as_samples(project: Path) -> None:
    for name in ("images/.DS_Store", "images/Thumbs.db", "images/._train0.png", "masks/._train0_segmentation.png"):
        (project / "data" / name).write_bytes(b"left behind")
    look(project / "data")


def test_names_with_a_suffix_in_splits_json_are_reported(project: Path) -> None:
    splits = project / "data/splits.json"
    names = {split: [f"{name}.png" for name in found] for split, found in json.loads(splits.read_text()).items()}
    splits.write_text(json.dumps(names))
    with pytest.raises(RuntimeFinding, match=r"R506.*train0\.png") as raised:
        look(project / "data")
    assert "without suffix" in raised.value.help


def test_r506_for_a_duplicate_split_in_splits_json(project: Path) -> None:
    splits = project / "data/splits.json"
    splits.write_text(splits.read_text().rstrip()[:-1] + ', "train": ["train0"]}')
    with pytest.raises(RuntimeFinding, match=r"R506.*no valid|R506.*not valid") as raised:
        look(project / "data")
    assert "'train' is there 2 times" in raised.value.note
