"""`ratc data check`: its table, its pictures, and the problems that it names."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ratc_runtime import preflight
from ratc_runtime.config.lock import Lock
from ratc_runtime.data import check
from ratc_runtime.data.folders import SPLITS
from ratc_runtime.data.survey import Survey, blank_images
from ratc_runtime.tasks import make_task

from tests.helpers.lockfile import BASE
from tests.unit.ratc_runtime.data.test_survey import blank, lock_with, look
from tests.unit.ratc_runtime.tasks import test_multi as several
from tests.unit.ratc_runtime.tasks.detection.test_detection import coco
from tests.unit.ratc_runtime.tasks.detection.test_detection import lock_of as coco_lock


def checked(lock: Lock, folder: Path, capsys: Any, *options: str) -> tuple[int, str, str]:
    """Exit status and output of the check of a lock's data."""

    import yaml

    path = folder / "checked.yaml"
    content = {key: value for key, value in lock.model_dump().items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    capsys.readouterr()
    status = check.main([str(path), "--data-dir", str(folder / "data"), *options])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_the_check_names_images_that_are_in_two_splits(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = project / "data/images"
    (images / "val0.png").write_bytes((images / "train3.png").read_bytes())
    (images / "test0.png").unlink()
    (images / "test0.png").symlink_to("train4.png")
    status, _, err = checked(lock_with(), project, capsys)
    assert status == 0, err
    assert "[R578] 1 image of val in train, too: " in err
    assert err.count("[R578]") == 2
    assert "images/test0.png is " in err


def test_the_check_prints_a_table_and_draws_samples(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = checked(lock_with(), project, capsys, "--pictures", str(project / "pictures"))
    assert status == 0, err
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["train"].split()[1:6] == ["10", "10", "0", "0", "32"]
    assert "3 of 3" in lines["foreground"]
    assert "12." in lines["foreground"]
    with Image.open(project / "pictures/samples.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
    status, out, _ = checked(lock_with(), project, capsys, "--samples", "2")
    assert out.splitlines()[1].split()[:3] == ["train", "10", "2"]
    assert "written" not in out


def test_pictures_of_the_check_replace_links(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pictures").mkdir()
    (project / "other.txt").write_text("kept")
    (project / "pictures/samples.png").symlink_to(project / "other.txt")
    assert checked(lock_with(), project, capsys, "--pictures", str(project / "pictures"))[0] == 0
    assert (project / "other.txt").read_text() == "kept"
    assert sorted(path.name for path in (project / "pictures").iterdir()) == ["samples.png"]


def test_the_check_names_every_kind_of_problem_and_fails(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (32, 32), (9, 0, 0)).save(project / "data/masks/train3_segmentation.png")
    (project / "data/images/train4.png").write_bytes(b"x")
    blank(project / "data", "val")
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(project / "data/images/test0.png") as picture:
        picture.save(project / "data/images/test0.png", exif=exif)
    status, out, err = checked(lock_with(), project, capsys, "--all")
    assert status == 1
    for code in ("R570", "R506", "R571"):
        assert f"error[{code}]" in err
    assert "1 of 3 images of test that were read have an EXIF orientation" in err
    assert out.splitlines()[1].split()[1:4] == ["10", "10", "2"]
    (project / "data/splits.json").write_text("{}")
    status, _, err = checked(lock_with(), project, capsys)
    assert status == 1
    assert err.count("error[R506]") == 3


def test_a_missing_data_folder_is_reported_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(project / "data")
    status, out, err = checked(lock_with(), project, capsys)
    assert status == 1
    assert err.count("error[R506]") == 1
    assert out == ""


@pytest.mark.parametrize(("kind", "told"), [("RGBA", True), ("LA", True), ("P", True), ("opaque", False)])
def test_images_that_are_transparent_in_part_are_counted(
    kind: str, told: bool, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "data/images/train1.png"
    with Image.open(path) as picture:
        other = picture.convert("RGBA")
        other.putalpha(Image.linear_gradient("L").resize(picture.size) if kind != "opaque" else 255)
        if kind == "P":
            picture.convert("P").save(path, transparency=0)
        else:
            other.convert("LA" if kind == "LA" else "RGBA").save(path)
    status, _, err = checked(lock_with(), project, capsys, "--all")
    assert status == 0, err
    said = "warning: [R579] 1 of 10 images of train that were read are partly transparent"
    assert (said in err) == told
    look(project / "data")
    assert (said in capsys.readouterr().err) == told


@pytest.mark.parametrize("value", [0, 9, 255])
def test_blank_images_are_counted(value: int, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (32, 32), value).save(project / "data/images/train1.png")
    said = "warning: [R592] 1 of 10 images of train that were read hold one value only"
    status, _, err = checked(lock_with(), project, capsys, "--all")
    assert status == 0, err
    assert err.count("R592") == 1
    assert said in err
    look(project / "data")
    assert said in capsys.readouterr().err


def test_volumes_are_reported_only_if_all_patches_are_blank() -> None:
    volumes = make_task(lock_with(data__image_size=[8, 8, 8], model__args={**BASE["model"]["args"], "spatial_dims": 3}))
    assert blank_images("train", Survey(9, read=9, blank=8), volumes) is None
    assert "9 of 9 images of train" in str(blank_images("train", Survey(9, read=9, blank=9), volumes))


def test_the_check_skips_the_samples_that_a_run_would_skip(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = lock_with(data__on_bad_sample="skip")
    Image.new("RGB", (32, 32), (9, 0, 0)).save(project / "data/masks/train3_segmentation.png")
    status, _, err = checked(lock, project, capsys)
    assert status == 0, err
    assert "warning[R570]" in err
    (project / "data/images/train4.png").unlink()
    status, out, err = checked(lock, project, capsys)
    assert status == 1
    assert "error[R533]: 2 of 10 samples of train" in err
    assert out.splitlines()[1].split()[1:5] == ["9", "9", "1", "1"]


def test_the_check_reports_a_split_without_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in SPLITS:
        coco(tmp_path / "data", split, f"images/{split}")
    lock = coco_lock(
        tmp_path,
        training__global_batch_size=2,
        training__micro_batch_size=2,
        training__gradient_accumulation_steps=1,
    )
    status, out, err = checked(lock, tmp_path, capsys, "--pictures", str(tmp_path / "pictures"))
    assert status == 0, err
    assert "[R572] `dog` never occurs" in err
    assert "toothbrush" in out
    assert (tmp_path / "pictures/samples.png").is_file()
    coco(tmp_path / "data", "val", "images/val", annotations=[])
    status, _, err = checked(lock, tmp_path, capsys)
    assert status == 1
    assert "error[R571]: no sample of val" in err


def test_the_check_covers_each_of_several_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several.data(tmp_path)
    path = several.write(tmp_path / "compiled", several.content())
    capsys.readouterr()
    assert check.main([str(path), "--data-dir", str(tmp_path), "--pictures", str(tmp_path / "pictures")]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if "/" in line.split("  ")[0]}
    assert rows["train/discs"] == "6"
    assert rows["train/train"] == "10"
    assert "\ndisc " in out
    assert {found.name for found in (tmp_path / "pictures").iterdir()} == {"discs-samples.png", "train-samples.png"}
    for mask in (tmp_path / "discs/masks").glob("test*"):
        Image.new("L", (32, 32)).save(mask)
    assert check.main([str(path), "--data-dir", str(tmp_path)]) == 1
    assert "no sample of test/discs" in capsys.readouterr().err


def test_the_check_reads_a_custom_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moons.py").write_text(
        "import torch\n\n\n"
        "class Moons:\n"
        "    def __init__(self, data_dir, split):\n"
        "        self.split = split\n\n"
        "    def __len__(self):\n"
        "        return 5\n\n"
        "    def __getitem__(self, index):\n"
        "        if self.split == 'test' and index == 2:\n"
        "            raise OSError('no such moon')\n"
        "        return torch.rand(3, 8, 8), torch.ones(1, 8, 8)\n"
    )
    monkeypatch.chdir(tmp_path)
    lock = lock_with(data__dataset="moons:Moons")
    status, out, err = checked(lock, tmp_path, capsys, "--pictures", "pictures")
    assert status == 1
    assert "OSError: no such moon" in err
    assert "8 x 8" in out
    assert (tmp_path / "pictures/samples.png").is_file()


def test_data_check_reads_a_spec(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ratc.cli import main

    (project / "spec.yaml").write_text(
        "experiment_name: small\ndata: {data_dir: data, channels: 1, image_size: 128}\n"
        "training: {target_batch_size: 5}\nresources: {num_gpus: 0, cpus: 2}\n"
    )
    monkeypatch.chdir(project.parent)
    monkeypatch.delenv("RAT_DATA_DIR", raising=False)
    runtime = Path(preflight.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(runtime), str(runtime.parent)]))
    spec, pictures = f"{project.name}/spec.yaml", project / "looked"
    assert main(["data", "check", spec, "-o", str(pictures)]) == 0
    assert (pictures / "samples.png").is_file()
    if sys.version_info >= (3, 11):  # before, Python itself looks into the working folder first
        (project / "types.py").write_text("raise SystemExit('the wrong module')\n")
        assert main(["data", "check", spec, "-o", str(pictures)]) == 0
    blank(project / "data", "test")
    assert main(["data", "check", spec, "-o", str(pictures)]) == 1
    assert main(["data", "check", spec, "--set", "data.num_classes=0"]) == 1
    assert main(["data", "check", spec, "--samples", "0"]) == 2
    assert main(["data", "draw", spec]) == 2
