"""The survey of the data before the first epoch: foreground, classes, sizes, names, lengths."""

from __future__ import annotations

import json
import random
import time
import unicodedata
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ratc_runtime import preflight
from ratc_runtime.config.lock import Lock, lock_from
from ratc_runtime.data import survey as survey_module
from ratc_runtime.data.cache import Cache, wrap
from ratc_runtime.data.coco import CocoDetection
from ratc_runtime.data.folders import SPLITS
from ratc_runtime.data.loading import left_out
from ratc_runtime.data.shared_cache import SharedCache
from ratc_runtime.data.sources import open_split
from ratc_runtime.data.survey import Survey, absent_classes, first_look, search, spread, survey
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.tasks import make_task

from tests.helpers.lockfile import lock_content, run_training, write_data, write_lock
from tests.unit.ratc_runtime.tasks.detection.test_detection import coco
from tests.unit.ratc_runtime.tasks.detection.test_detection import lock_of as coco_lock

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


def test_good_data_pass_and_keep_the_random_state(project: Path) -> None:
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    look(project / "data")
    after = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_warns_of_images_in_two_splits(cached: bool, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    look(project / "data")
    assert "R578" not in capsys.readouterr().err
    images = project / "data/images"
    for number in range(3):
        (images / f"test{number}.png").write_bytes((images / f"train{number}.png").read_bytes())
    lock = lock_with()
    datasets = opened(project / "data", lock)
    if cached:
        records = sum(len(dataset) for dataset in datasets.values())
        datasets = dict(wrap(Cache("memory", SharedCache.in_memory(records, 1 << 20), "memory"), datasets, False))
    first_look(datasets, make_task(lock), ALONE, False)
    assert "warning: [R578] 3 images of test in train, too: " in capsys.readouterr().err


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


def test_every_rank_reports_the_same_survey(project: Path) -> None:
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


def test_samples_to_be_skipped_do_not_end_the_survey(project: Path) -> None:
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
    assert "`background`, `cell`, `wall` never occur in" in absent_classes("val", Survey(4, read=4), task).message


def test_absent_classes_of_detection_are_found_in_all_images(
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
def test_targets_of_another_task_are_refused(target: Any, several: bool, code: str, says: str) -> None:
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


def test_the_survey_ends_at_its_time_limit(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_survey_runs_in_its_own_process_if_loader_processes_follow(project: Path) -> None:
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


def test_a_large_share_of_skipped_samples_is_reported(project: Path) -> None:
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


def test_preflight_refuses_a_global_batch_larger_than_the_data(
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
def test_absurd_numbers_and_names_give_findings(tmp_path: Path, changes: dict[str, Any]) -> None:
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
        ("C:\\data\\x.png", "x.png", "of another place", "x.png"),
        ("http://host/x.png", "x.png", "of another place", "x.png"),
        ("x.png\r", "x.png", "other spaces or line ends", "x.png"),
    ],
)
def test_a_file_with_a_similar_name_is_suggested(
    tmp_path: Path, listed: str, there: str, says: str, helps: str
) -> None:
    coco(tmp_path, images=[{"id": 7, "file_name": listed, "width": 40, "height": 20}], annotations=[])
    (tmp_path / "images" / there).parent.mkdir(exist_ok=True)
    (tmp_path / "images/7.png").rename(tmp_path / "images" / there)
    with pytest.raises(RuntimeFinding, match=r"R506.*which is not there") as raised:
        CocoDetection(tmp_path, "train", (40, 40), channels=1)
    assert says in raised.value.note
    assert helps in raised.value.help


def test_the_number_of_missing_images_is_reported(tmp_path: Path) -> None:
    names = [f"x{number}.png" for number in range(5)]
    images = [{"id": 10 + n, "file_name": name, "width": 40, "height": 20} for n, name in enumerate(names)]
    coco(tmp_path, images=images, annotations=[])
    with pytest.raises(RuntimeFinding) as raised:
        CocoDetection(tmp_path, "train", (40, 40), channels=1)
    assert raised.value.message.startswith("5 of 5 images that ")
    assert raised.value.message.endswith("are not there: x0.png, x1.png, x2.png, …")
    assert CocoDetection(tmp_path, "train", (40, 40), channels=1, skip_missing=True).missing == names


def test_masks_without_background_are_reported(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blank(project / "data", "train", 255)
    look(project / "data")
    assert "[R572] `background` never occurs in the 10 samples of train" in capsys.readouterr().err


def test_duplicate_images_in_and_between_splits_are_refused(tmp_path: Path) -> None:
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
    assert "2 images in both" in raised.value.note


def test_boxes_that_look_like_corners_or_duplicates_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = {"image_id": 7, "category_id": 1}
    corners = [{"id": 1, **box, "bbox": [20, 5, 38, 18]}]
    copies = [{"id": n, **box, "bbox": [1, 1, 9, 9]} for n in (2, 3)]
    coco(tmp_path, annotations=[*corners, *copies, {"id": 4, **box, "bbox": [30, 10, 10.5, 10.9]}])
    CocoDetection(tmp_path, "train", (40, 40), channels=1)
    err = capsys.readouterr().err
    assert "1 box(es) reach beyond their image" in err
    assert "1 box(es) are there a second time" in err


def test_an_image_of_another_size_than_listed_is_refused_with_both_sizes(tmp_path: Path) -> None:
    coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "images/7.png", exif=exif)
    data = CocoDetection(tmp_path, "train", (40, 40), channels=1)
    with pytest.raises(RuntimeFinding, match=r"R506.*20 x 40 \(upright.*40 x 20"):
        data[data.names.index("7.png")]
