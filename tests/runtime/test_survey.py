"""What is seen of the data before the first epoch: foreground, classes, sizes, names, lengths; `ratc data check`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import time
import unicodedata
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lockfile import lock_content, results, run_training, write_data, write_lock
from PIL import Image
from ratc_runtime import preflight
from ratc_runtime.config.lock import Lock, lock_from
from ratc_runtime.data import check
from ratc_runtime.data import survey as survey_module
from ratc_runtime.data.coco import CocoDetection
from ratc_runtime.data.loading import left_out
from ratc_runtime.data.sources import SPLITS, open_split
from ratc_runtime.data.survey import Survey, first_look, never_there, search, spread, survey
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.tasks import make_task

from tests.runtime import test_several as several
from tests.runtime.test_detection import coco
from tests.runtime.test_detection import lock_of as coco_lock

ALONE = World(0, 1, torch.device("cpu"))
THREE = {"data__num_classes": 3, "data__class_names": ["background", "cell", "wall"]}


def lock_with(**changes: Any) -> Lock:
    return lock_from(lock_content(**changes))


def opened(folder: Path, lock: Lock) -> dict[str, Any]:
    return {split: open_split(lock, folder, split) for split in SPLITS}


def look(folder: Path, **changes: Any) -> None:
    lock = lock_with(**changes)
    first_look(opened(folder, lock), make_task(lock), ALONE, False)


def blank(folder: Path, split: str, value: int = 0) -> None:
    for name in json.loads((folder / "splits.json").read_text())[split]:
        Image.new("L", (32, 32), value).save(folder / f"masks/{name}_segmentation.png")


def checked(lock: Lock, folder: Path, capsys: Any, *options: str) -> tuple[int, str, str]:
    """Exit status and output of the check of a lock's data."""
    import dataclasses

    import yaml

    path = folder / "checked.yaml"
    content = {key: value for key, value in dataclasses.asdict(lock).items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    capsys.readouterr()
    status = check.main([str(path), "--data-dir", str(folder / "data"), *options])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_good_data_pass_and_the_random_state_stays_as_it_was(project: Path) -> None:
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    look(project / "data")
    after = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_without_foreground_is_refused(project: Path, split: str) -> None:
    blank(project / "data", split)
    with pytest.raises(RuntimeFinding, match=f"R571.*no sample of {split}") as raised:
        look(project / "data")
    assert raised.value.everywhere


def test_a_split_of_ignored_pixels_only_is_refused(project: Path) -> None:
    """Masks of 0 and 255 under `num_classes: 2, ignore_index: 255`: every foreground pixel is left out."""
    two = {"data__num_classes": 2, "data__class_names": ["a", "b"], "data__ignore_index": 255}
    with pytest.raises(RuntimeFinding, match="R571"):
        look(project / "data", **two)


def test_one_sample_with_foreground_is_found_among_many_without(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=120)
    names = json.loads((tmp_path / "data/splits.json").read_text())["train"]
    for name in names[:-1]:
        Image.new("L", (32, 32)).save(tmp_path / f"data/masks/{name}_segmentation.png")
    look(tmp_path / "data")


def test_every_rank_finds_the_same(project: Path) -> None:
    """Three ranks that share the samples, and bring together what each of them saw."""
    blank(project / "data", "val")
    lock = lock_with()
    task, data = make_task(lock), opened(project / "data", lock)
    shares = [spread(3, 32, lock.seed)[rank::3] for rank in range(3)]
    assert sorted(place for share in shares for place in share) == [0, 1, 2]
    found = [search(data["val"], task, range(rank, 3, 3), None) for rank in range(3)]
    assert found == [(False, 1)] * 3


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda masks: Image.fromarray(masks // 255 * 2), "R570"),
        (lambda masks: Image.fromarray(np.stack([masks, 0 * masks, 0 * masks], axis=2)), "R570"),
        (lambda masks: Image.fromarray(masks[:16]), "R506"),
    ],
)
def test_a_run_is_refused_before_its_first_step(project: Path, spoil: Any, code: str) -> None:
    for path in (project / "data/masks").iterdir():
        spoil(np.asarray(Image.open(path))).save(path)
    told = run_training(write_lock(project / "compiled"))
    assert told.returncode == 1
    assert f"error[{code}]" in told.stderr
    assert "Traceback" not in told.stderr
    assert "step 1/" not in told.stdout
    assert not list((project / "out").glob("checkpoints/*.pt"))


def test_bad_samples_that_are_to_be_skipped_do_not_end_the_start(project: Path) -> None:
    Image.new("RGB", (32, 32), (255, 0, 0)).save(project / "data/masks/train3_segmentation.png")
    with pytest.raises(RuntimeFinding, match="R570"):
        look(project / "data")
    look(project / "data", data__on_bad_sample="skip")
    for path in (project / "data/masks").glob("train*"):
        Image.new("RGB", (32, 32), (255, 0, 0)).save(path)
    with pytest.raises(RuntimeFinding, match="R570"):
        look(project / "data", data__on_bad_sample="skip")


def test_classes_that_never_occur_are_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (project / "data/masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    look(project / "data", **THREE)
    said = capsys.readouterr().err
    assert "[R572] `wall` never occurs in the 10 samples of train" in said
    task = make_task(lock_with(**THREE))
    assert "`background`, `cell`, `wall` never occur in" in never_there("val", Survey(4, read=4), task).message


def test_of_objects_it_is_known_for_every_image_which_classes_never_occur(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 20} for n in range(50)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9]} for n in range(50)]
    coco(tmp_path, images=images, annotations=boxes)
    for n in range(50):
        Image.new("L", (40, 20)).save(tmp_path / f"images/{n}.png")
    lock = coco_lock(tmp_path)
    data = {"train": open_split(lock, tmp_path, "train")}
    task = make_task(lock)
    task.opened(data)
    first_look(data, task, ALONE, False)
    assert "[R572] `dog`, `toothbrush` never occur in the 50 samples of train" in capsys.readouterr().err


class Own:
    """A data set of somebody's own, of one sample."""

    def __init__(self, image: Any, target: Any) -> None:
        self.sample = image, target

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.sample


@pytest.mark.parametrize(
    ("target", "several", "code", "says"),
    [
        (torch.full((1, 8, 8), 255.0), False, "R570", "from 255 to 255"),
        (torch.zeros(1, 4, 4), False, "R573", "4 x 4 pixels, the image 8 x 8"),
        (torch.zeros(8, 8), False, "R573", r"shape is \(8, 8\)"),
        ("a mask", False, "R573", "type str"),
        (torch.full((8, 8), 3), True, "R536", "value 3"),
        (torch.full((8, 8), -1), True, "R536", "value -1"),
        (torch.zeros(8, 8), True, "R573", "float32"),
        (torch.zeros(1, 8, 8, dtype=torch.long), True, "R573", "1 x 8 x 8 pixels, the image 8 x 8"),
        (torch.full((1, 8, 8), float("nan")), False, "R506", "not finite"),
    ],
)
def test_targets_that_do_not_go_with_the_task_are_refused(target: Any, several: bool, code: str, says: str) -> None:
    lock = lock_with(**(THREE if several else {}))
    with pytest.raises(RuntimeFinding, match=f"(?s){code}.*{says}"):
        first_look({"train": Own(torch.rand(3, 8, 8), target)}, make_task(lock), ALONE, True)


def test_labels_out_of_range_are_refused_in_every_batch() -> None:
    task = make_task(lock_with(**THREE, data__ignore_index=255))
    assert task.collate([torch.tensor([[0, 2], [1, 255]])]).tolist() == [[[0, 2], [1, 255]]]
    for wrong in (3, -1, 254):
        with pytest.raises(RuntimeFinding, match=f"R536.*value {wrong}"):
            task.collate([torch.tensor([[0, wrong]])])
    with pytest.raises(RuntimeFinding, match="R570"):
        make_task(lock_with()).collate([torch.full((1, 2, 2), 255)])


def test_reading_ends_when_its_time_is_up(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Own):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> Any:
            time.sleep(0.05)
            return self.sample

    data = Slow(torch.rand(1, 8, 8), torch.ones(1, 8, 8))
    seen = survey(data, make_task(lock_with()), range(1000), 0.2)
    assert 1 <= seen.read <= 5
    assert not seen.complete


def test_a_data_set_is_looked_at_in_another_process_if_loader_processes_follow(project: Path) -> None:
    """What it opens when it is first read must not be shared by all loader processes."""

    opened: list[int] = []

    class Lazy(Own):
        def __getitem__(self, index: int) -> Any:
            opened.append(index)
            return self.sample

    data = Lazy(torch.rand(1, 8, 8), torch.ones(1, 8, 8))
    task, before = make_task(lock_with()), torch.random.get_rng_state()
    first_look({"train": data}, task, ALONE, True, apart=True)
    assert opened == []
    assert torch.equal(before, torch.random.get_rng_state())
    bad = Lazy(torch.rand(1, 8, 8), torch.full((1, 8, 8), 255.0))
    with pytest.raises(RuntimeFinding, match="R570"):
        first_look({"train": bad}, task, ALONE, True, apart=True)
    empty = Lazy(torch.rand(1, 8, 8), torch.zeros(1, 8, 8))
    with pytest.raises(RuntimeFinding, match="R571"):
        first_look({"train": empty}, task, ALONE, True, apart=True)
    assert opened == []
    first_look({"train": data}, task, ALONE, True)
    assert opened == [0, 1]


def test_a_data_set_that_hangs_is_left_to_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon PyTorch learns that the process was killed, it must not raise for it."""

    class Hanging(Own):
        def __getitem__(self, index: int) -> Any:
            if index:
                time.sleep(600)
            return self.sample

    def killed_and_noticed(process: Any, kill: Any = BaseProcess.kill) -> None:
        kill(process)
        time.sleep(0.2)  # the signal of its end is handled here

    monkeypatch.setattr(survey_module, "PATIENCE", 1)
    monkeypatch.setattr(BaseProcess, "kill", killed_and_noticed)
    data = Hanging(torch.rand(1, 8, 8), torch.ones(1, 8, 8))
    assert list(survey_module.each(data, lambda dataset, position: position, [0], apart=True)) == [0]
    assert list(survey_module.each(data, lambda dataset, position: dataset[position] and 1, [0, 1], apart=True)) == [1]


def test_a_large_part_that_is_left_out_is_said(project: Path) -> None:
    lock = lock_with(training__global_batch_size=32, training__micro_batch_size=32)
    found = left_out(56, lock)
    assert found is not None
    assert found.code == "R577"
    assert "`last_batch: drop` leaves out 24 of 56" in found.message
    assert left_out(64, lock) is None
    assert left_out(32 * 20 + 1, lock) is None
    assert left_out(56, lock_with(training__global_batch_size=32, training__last_batch="keep")) is None
    told = run_training(
        write_lock(
            project / "compiled",
            training__global_batch_size=6,
            training__micro_batch_size=3,
            training__epochs=1,
        )
    )
    assert told.returncode == 0, told.stderr
    assert told.stderr.count("[R577]") == 1


def test_preflight_refuses_a_global_batch_that_the_data_cannot_fill(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("RAT_DATA_DIR", raising=False)
    lock = str(write_lock(project / "compiled", training__global_batch_size=16, training__micro_batch_size=8))
    assert preflight.main([lock]) == 1
    assert "R503" in capsys.readouterr().err
    monkeypatch.setenv("RAT_DATA_DIR", "elsewhere")  # what is not there is the run's to say
    assert preflight.main([lock]) == 0
    monkeypatch.delenv("RAT_DATA_DIR")
    for text in ("{", '{"train": 3}', "[]", '{"train": []}'):
        (project / "data/splits.json").write_text(text)
        assert preflight.main([lock]) == (1 if text == '{"train": []}' else 0)


BOX = {"image_id": 7, "category_id": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": [{**BOX, "bbox": [0, 0, 10**400, 4]}]},
        {"annotations": [{**BOX, "bbox": [0, -(10**400), 1, 4]}]},
        {"annotations": [{**BOX, "bbox": [0, 0, 1e300, 4]}]},
        {"annotations": [{"image_id": 7, "category_id": [1], "bbox": [0, 0, 1, 1]}]},
        {"annotations": [{"image_id": 10**400, "category_id": 1, "bbox": [0, 0, 1, 1]}]},
        {"images": [{"id": 7, "file_name": "7.png", "width": 10**400, "height": 20}]},
        {"images": [{"id": 7, "file_name": "x" * 5000, "width": 40, "height": 20}], "annotations": []},
        {"images": [{"id": 7, "file_name": "a/" * 3000 + "x", "width": 40, "height": 20}], "annotations": []},
        {"images": [{"id": 7, "file_name": "a\0b.png", "width": 40, "height": 20}], "annotations": []},
        {"images": [{"id": 7, "file_name": "\ud800.png", "width": 40, "height": 20}], "annotations": []},
        {"images": [{"id": 7, "file_name": "\x1b[31m\n.png", "width": 40, "height": 20}], "annotations": []},
    ],
)
def test_absurd_numbers_and_names_are_findings(tmp_path: Path, changes: dict[str, Any]) -> None:
    coco(tmp_path, **changes)
    with pytest.raises(RuntimeFinding) as raised:
        CocoDetection(tmp_path, "train", (40, 40), channels=1)
    assert raised.value.code == "R506"
    assert len(raised.value.message) < 1000
    assert raised.value.message.isprintable()


NFD = unicodedata.normalize("NFD", "é.png")


@pytest.mark.parametrize(
    ("listed", "there", "says", "helps"),
    [
        ("part\\7.png", "part/7.png", "backslashes", "write `/`"),
        ("é.png", NFD, "Unicode normal form", "rename the file"),
        (NFD, "é.png", "Unicode normal form", "rename the file"),
        ("x.png", "x.tif", "another ending", "x.tif"),
        ("X.png", "x.PNG", "capital letters", "x.PNG"),
        ("deep\\x.png", "deep/x.jpg", "another ending", "x.jpg"),
    ],
)
def test_a_file_that_is_nearly_called_so_is_named(
    tmp_path: Path, listed: str, there: str, says: str, helps: str
) -> None:
    coco(tmp_path, images=[{"id": 7, "file_name": listed, "width": 40, "height": 20}], annotations=[])
    (tmp_path / "images" / there).parent.mkdir(exist_ok=True)
    (tmp_path / "images/7.png").rename(tmp_path / "images" / there)
    with pytest.raises(RuntimeFinding, match=r"R506.*which is not there") as raised:
        CocoDetection(tmp_path, "train", (40, 40), channels=1)
    assert says in raised.value.note
    assert helps in raised.value.help


@pytest.mark.parametrize(
    ("folder", "old", "new", "says"),
    [
        ("images", "train0.png", "train0.tif", "another ending"),
        ("images", "train0.png", "Train0.png", "capital letters"),
        ("masks", "train0_segmentation.png", "train0_segmentation.jpg", "another ending"),
    ],
)
def test_a_mask_or_image_that_is_nearly_called_so_is_named(
    project: Path, folder: str, old: str, new: str, says: str
) -> None:
    (project / "data" / folder / old).rename(project / "data" / folder / new)
    with pytest.raises(RuntimeFinding, match=r"R506.*train0") as raised:
        look(project / "data")
    assert says in raised.value.note
    assert new in raised.value.note


@pytest.mark.parametrize("suffix", [".PNG", ".Jpg", ".JPEG"])
def test_endings_may_have_capital_letters(project: Path, suffix: str) -> None:
    image = project / "data/images/train0.png"
    Image.open(image).convert("RGB").save(image.with_suffix(suffix))
    image.unlink()
    mask = project / "data/masks/train0_segmentation.png"
    mask.rename(mask.with_suffix(".PNG"))
    look(project / "data")


@pytest.mark.parametrize("second", ["images/train0.jpg", "images/train0.PNG", "masks/train0_segmentation.PNG"])
def test_a_sample_of_two_files_is_refused_with_both(project: Path, second: str) -> None:
    (project / "data" / second).write_bytes(b"")
    with pytest.raises(RuntimeFinding, match=f"R506.*train0 of split train has 2 files in {second[:5]}") as raised:
        look(project / "data")
    assert Path(second).name in raised.value.note
    assert open_split(lock_with(data__on_bad_sample="skip"), project / "data", "train").missing == ["train0"]


def test_files_that_systems_leave_behind_are_no_samples(project: Path) -> None:
    for name in ("images/.DS_Store", "images/Thumbs.db", "images/._train0.png", "masks/._train0_segmentation.png"):
        (project / "data" / name).write_bytes(b"left behind")
    look(project / "data")


def test_names_in_the_list_have_no_suffix_and_that_is_said(project: Path) -> None:
    splits = project / "data/splits.json"
    names = {split: [f"{name}.png" for name in found] for split, found in json.loads(splits.read_text()).items()}
    splits.write_text(json.dumps(names))
    with pytest.raises(RuntimeFinding, match=r"R506.*train0\.png") as raised:
        look(project / "data")
    assert "without suffix" in raised.value.help


def test_a_split_that_is_there_twice_is_refused(project: Path) -> None:
    splits = project / "data/splits.json"
    splits.write_text(splits.read_text().rstrip()[:-1] + ', "train": ["train0"]}')
    with pytest.raises(RuntimeFinding, match=r"R506.*no valid|R506.*not valid") as raised:
        look(project / "data")
    assert "'train' is there 2 times" in raised.value.note


def test_masks_without_background_are_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blank(project / "data", "train", 255)
    look(project / "data")
    assert "[R572] `background` never occurs in the 10 samples of train" in capsys.readouterr().err


def test_the_check_names_images_that_are_in_two_splits(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = project / "data/images"
    (images / "val0.png").write_bytes((images / "train3.png").read_bytes())
    (images / "test0.png").unlink()
    (images / "test0.png").symlink_to("train4.png")
    status, _, err = checked(lock_with(), project, capsys)
    assert status == 0, err
    assert "[R578] 1 image(s) of val are in train, too: " in err
    assert err.count("[R578]") == 2
    assert "images/test0.png is " in err


def test_an_image_is_in_one_split_and_once(tmp_path: Path) -> None:
    twice = [{"id": n, "file_name": "7.png", "width": 40, "height": 20} for n in (1, 2)]
    coco(tmp_path, images=twice, annotations=[])
    with pytest.raises(RuntimeFinding, match=r"R506.*several `images`.*7\.png"):
        CocoDetection(tmp_path, "train", (40, 40), channels=1)
    for split in ("train", "val"):
        coco(tmp_path, split)
    lock = coco_lock(tmp_path)
    data = {split: open_split(lock, tmp_path, split) for split in ("train", "val")}
    with pytest.raises(RuntimeFinding, match=r"R506.*train and of val both name .*3\.png") as raised:
        make_task(lock).opened(data)
    assert "2 image(s) in both" in raised.value.note


def test_boxes_that_may_be_two_corners_or_copies_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = {"image_id": 7, "category_id": 1}
    corners = [{"id": 1, **box, "bbox": [20, 5, 38, 18]}]
    copies = [{"id": n, **box, "bbox": [1, 1, 9, 9]} for n in (2, 3)]
    coco(tmp_path, annotations=[*corners, *copies, {"id": 4, **box, "bbox": [30, 10, 10.5, 10.9]}])
    CocoDetection(tmp_path, "train", (40, 40), channels=1)
    err = capsys.readouterr().err
    assert "1 box(es) reach beyond their image" in err
    assert "1 box(es) are there a second time" in err


def test_an_image_of_another_size_than_is_listed_is_refused_with_both(tmp_path: Path) -> None:
    coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "images/7.png", exif=exif)
    data = CocoDetection(tmp_path, "train", (40, 40), channels=1)
    with pytest.raises(RuntimeFinding, match=r"R506.*20 x 40 \(upright.*40 x 20"):
        data[data.names.index("7.png")]


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


def test_pictures_do_not_follow_a_link(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    said = "warning[R579]: 1 of 10 images of train that were read are transparent in part"
    assert (said in err) == told
    look(project / "data")
    assert (said in capsys.readouterr().err) == told


def test_the_check_leaves_out_what_a_run_would_leave_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_check_of_objects_and_of_a_split_without_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_check_of_several_tasks_is_task_by_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_check_of_a_data_set_of_somebodys_own(
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


def test_the_command_reads_a_spec(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    blank(project / "data", "test")
    assert main(["data", "check", spec, "-o", str(pictures)]) == 1
    assert main(["data", "check", spec, "--set", "data.num_classes=0"]) == 1
    assert main(["data", "check", spec, "--samples", "0"]) == 2
    with contextlib.redirect_stderr(io.StringIO()), pytest.raises(SystemExit):
        main(["data", "draw", spec])


NORM = (
    "import torch\n\n\n"
    "class Net(torch.nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.body = torch.nn.Conv2d(1, 4, 3, padding=1)\n"
    "        self.gate = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))\n"
    "        self.head = torch.nn.Conv2d(4, 1, 1)\n\n"
    "    def forward(self, image):\n"
    "        found = self.body(image)\n"
    "        return self.head(found * self.gate(found.mean((2, 3)))[:, :, None, None])\n\n\n"
    "class Dict(Net):\n"
    "    def forward(self, image):\n"
    "        return {'out': super().forward(image), 'aux': None}\n"
)


def own_model(folder: Path, name: str, **changes: Any) -> Path:
    (folder / "own.py").write_text(NORM)
    model = {"name": f"own:{name}", "multi_scale": False, "args": {}, "attention_memory": "full"}
    return write_lock(folder / "compiled", model=model, **changes)


def test_a_last_batch_of_one_sample_for_batch_norm_is_refused_at_the_start(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=9)
    told = run_training(own_model(tmp_path, "Net", training__last_batch="keep"))
    assert told.returncode == 1
    assert "error[R575]: module `gate.1` (BatchNorm1d)" in told.stderr
    assert "last_batch: drop" in told.stderr
    assert "Traceback" not in told.stderr
    assert "step 1/" not in told.stdout
    told = run_training(own_model(tmp_path, "Net", training__last_batch="drop"))
    assert told.returncode == 0, told.stderr


def test_batch_norm_with_micro_batches_of_one_is_named_too(project: Path) -> None:
    one = {"training__micro_batch_size": 1, "training__gradient_accumulation_steps": 4}
    told = run_training(own_model(project, "Net", **one))
    assert told.returncode == 1
    assert "error[R575]: module `gate.1` (BatchNorm1d)" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_model_that_returns_a_mapping_is_refused_with_its_keys(project: Path) -> None:
    told = run_training(own_model(project, "Dict"))
    assert told.returncode == 1
    assert "error[R574]: the model returns a mapping with the keys `out`, `aux`" in told.stderr
    assert "`model: {output: out}`" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_key_of_the_logits_may_be_named(project: Path) -> None:
    model = {"name": "own:Dict", "multi_scale": False, "args": {}, "attention_memory": "full"}
    (project / "own.py").write_text(NORM)
    told = run_training(write_lock(project / "compiled", model={**model, "output": "logits"}))
    assert told.returncode == 1
    assert "the keys `out`, `aux`, and the lock's model.output is `logits`" in told.stderr
    told = run_training(write_lock(project / "compiled", model={**model, "output": "out"}))
    assert told.returncode == 0, told.stderr
    assert results(project / "out")["test"]["dice"] is not None
    assert lock_with(model=model).fingerprint() != lock_with(model={**model, "output": "out"}).fingerprint()
    assert lock_with(model=model).fingerprint() == lock_with(model={**model, "output": None}).fingerprint()


def test_a_custom_task_may_take_a_mapping_as_its_input(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n\n\n"
        "class Data(torch.utils.data.Dataset):\n"
        "    def __init__(self, data_dir, split):\n"
        "        self.length = 8\n\n"
        "    def __len__(self):\n"
        "        return self.length\n\n"
        "    def __getitem__(self, index):\n"
        "        one = torch.full((3,), index / 8)\n"
        "        return {'image': {'left': one, 'right': [one, one]}, 'target': one.sum()}\n\n\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.line = torch.nn.Linear(3, 1)\n\n"
        "    def forward(self, given):\n"
        "        return self.line(given['left'] + given['right'][1])[:, 0]\n\n\n"
        "def loss():\n"
        "    return torch.nn.functional.mse_loss\n"
    )
    lock = write_lock(
        tmp_path / "compiled",
        task_type="custom",
        model={"name": "own:Net", "multi_scale": False, "args": {}, "attention_memory": "full"},
        data__dataset="own:Data",
        training__loss={"name": "own:loss", "args": {}},
        checkpoint__best_metric="loss",
    )
    told = run_training(lock)
    assert told.returncode == 0, told.stderr
    assert results(tmp_path / "out")["status"] == "finished"
    assert results(tmp_path / "out")["test"]["samples"] == 8
    again = run_training(lock)
    assert again.returncode == 0, again.stderr
