"""Detection: the COCO layout, the head, and runs on two processes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from ratc_runtime.commands import evaluate, predict
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.data.coco import CocoDetection
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import fused_maps
from ratc_runtime.models.build import build_model
from ratc_runtime.tasks import make_task

from tests.effort import HANGS_S
from tests.helpers.lockfile import BASE, environment, results, write_lock
from tests.helpers.reference_attention import attend


def lock_of(folder: Path, **changes: Any) -> Lock:
    content = copy.deepcopy(BASE)
    content["task_type"], content["detection"] = "detection", {"queries": 6, "decoder_layers": 2}
    content["checkpoint"]["best_metric"] = "map"
    content["training"]["loss"] = {"name": "set_prediction", "args": {}}
    content["data"] |= {"dataset": "coco", "num_classes": 3, "class_names": ["class 0", "class 1", "class 2"]}
    for dotted, value in changes.items():
        section, key = dotted.split("__")
        content[section][key] = value
    path = folder / "lock.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_lock(path)


def coco(folder: Path, split: str = "train", place: str = "images", **changes: Any) -> dict[str, Any]:
    """Write two images of 40 x 20 pixels, one without objects, into `place`; returns what the annotations say."""
    content: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 20} for n in (7, 3)],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 5, 20, 10], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [-5, 0, 10, 30], "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 20], "iscrowd": 1},
            {"id": 4, "image_id": 7, "category_id": 1, "bbox": [50, 2, 4, 4], "iscrowd": 0},
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": [5, 5, 0, 4], "iscrowd": 0},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    content |= changes
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (folder / place).mkdir(parents=True, exist_ok=True)
    for number in (3, 7):
        Image.new("L", (40, 20), 10 * number).save(folder / place / f"{number}.png")
    return content


def test_boxes_are_clipped_resized_and_numbered_and_crowds_separated(tmp_path: Path) -> None:
    coco(tmp_path)
    data = CocoDetection(tmp_path, "train", (40, 40), channels=1, scales=(1.0, 0.5), num_classes=3)
    assert (data.names, data.class_names, data.dropped) == (["3.png", "7.png"], ["person", "dog", "toothbrush"], 2)
    assert data.most_objects == 2
    item = data[1]
    assert [tuple(level.shape) for level in item["image"]] == [(1, 40, 40), (1, 20, 20)]
    target = item["target"]
    # Twice as high as it was: from 40 x 20 to 40 x 40.
    assert target["boxes"].tolist() == [[10, 10, 30, 30], [0, 0, 5, 40], [0, 0, 40, 40]]
    assert (target["labels"].tolist(), target["iscrowd"].tolist()) == ([2, 0, 0], [False, False, True])
    empty = data[0]["target"]
    assert (tuple(empty["boxes"].shape), tuple(empty["labels"].shape)) == ((0, 4), (0,))
    (made,) = make_task(lock_of(tmp_path, data__image_size=[40, 40])).collate([target])
    torch.testing.assert_close(made["boxes"], torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0625, 0.5, 0.125, 1.0]]))
    assert made["crowd_boxes"].tolist() == [[0.5, 0.5, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": 3}, "no list `images`"),
        ({"images": [{"id": 7, "file_name": "../7.png", "width": 4, "height": 4}]}, "not a path below"),
        ({"images": [{"id": 7, "file_name": "7.png", "width": 0, "height": 4}]}, "size 0 x 4"),
        ({"images": [{"id": 8, "file_name": "8.png", "width": 4, "height": 4}], "annotations": []}, "8.png, which is"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, "annotations[0] is of image 1"),
        ({"annotations": [{"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]}]}, "the category 2"),
        ({"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}]}, "the bbox [0, 0, 1]"),
        ({"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, float("nan")]}]}, "the bbox"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "a second time"),
    ],
)
def test_invalid_annotations_are_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    coco(tmp_path, **changes)
    with pytest.raises(RuntimeFinding) as raised:
        CocoDetection(tmp_path, "train", (40, 40), channels=1)
    assert raised.value.code == "R506"
    assert says in raised.value.message
    assert "instances_train.json" in raised.value.message


def test_categories_with_the_same_name_are_refused(tmp_path: Path) -> None:
    coco(tmp_path, categories=[{"id": 90, "name": "cat"}, {"id": 1, "name": "person"}, {"id": 18, "name": "cat"}])
    with pytest.raises(RuntimeFinding, match=r"R539.*several categories of the name cat") as raised:
        CocoDetection(tmp_path, "train", (40, 40), channels=1)
    assert "their ids are 18, 90" in raised.value.note


def test_boxes_of_negative_size_are_counted_separately(tmp_path: Path, capsys: Any) -> None:
    boxes = [
        {"image_id": 7, "category_id": 1, "bbox": box} for box in ([20, 15, -8, -8], [9, 9, 0.5, 0.5], [2, 2, 5, 5])
    ]
    coco(tmp_path, annotations=boxes)
    data = CocoDetection(tmp_path, "train", (40, 40), channels=1)
    assert (data.dropped, data.negative, data.most_objects) == (2, 1, 1)
    said = capsys.readouterr().err
    assert "2 box(es) lie outside of their image or are smaller than a pixel, and are left out" in said
    assert "1 of them have a width or a height below 0" in said


def test_common_coco_layouts_are_found_and_other_classes_refused(tmp_path: Path) -> None:
    coco(tmp_path, "val2017")
    (tmp_path / "images").rename(tmp_path / "val2017")
    assert len(CocoDetection(tmp_path, "val", (40, 40))) == 2
    with pytest.raises(RuntimeFinding, match="3 categories") as raised:
        CocoDetection(tmp_path, "val", (40, 40), num_classes=80)
    assert raised.value.code == "R539"
    with pytest.raises(RuntimeFinding, match="instances_test"):
        CocoDetection(tmp_path, "test", (40, 40))
    (tmp_path / "val2017" / "7.png").unlink()
    assert CocoDetection(tmp_path, "val", (40, 40), skip_missing=True).missing == ["7.png"]


def test_other_categories_and_more_objects_than_queries_are_reported(tmp_path: Path, capfd: Any) -> None:
    coco(tmp_path)
    coco(tmp_path, "val", categories=[{"id": n, "name": name} for n, name in ((1, "dog"), (18, "person"), (90, "cat"))])
    data = {split: CocoDetection(tmp_path, split, (40, 40)) for split in ("train", "val")}
    task: Any = make_task(lock_of(tmp_path))
    with pytest.raises(RuntimeFinding) as raised:
        task.opened(data)
    assert raised.value.code == "R539"
    (tmp_path / "named").mkdir()
    named: Any = make_task(lock_of(tmp_path / "named", data__class_names=["dog", "person", "toothbrush"]))
    with pytest.raises(RuntimeFinding, match="classes of train are not those of the run"):
        named.opened(data)
    content = yaml.safe_load((tmp_path / "lock.yaml").read_text())
    content["detection"]["queries"] = 1
    (tmp_path / "lock.yaml").write_text(yaml.safe_dump(content))
    few: Any = make_task(read_lock(tmp_path / "lock.yaml"))
    few.opened({"train": data["train"]})
    assert few.class_names == ["person", "dog", "toothbrush"]
    assert "[R540] an image of train has 2 objects, and detection.queries is 1" in capfd.readouterr().err


@pytest.mark.parametrize(
    "target",
    [
        torch.zeros(1, 4, 4),
        {"boxes": torch.zeros(2, 4)},
        {"boxes": torch.zeros(2, 4), "labels": torch.tensor([0])},
        {"boxes": torch.zeros(1, 4), "labels": torch.tensor([3])},
        {"boxes": torch.tensor([[4.0, 4.0, 1.0, 1.0]]), "labels": torch.tensor([0])},
        {"boxes": torch.full((1, 4), float("nan")), "labels": torch.tensor([0])},
    ],
)
def test_r541_for_an_invalid_detection_target(tmp_path: Path, target: Any) -> None:
    with pytest.raises(RuntimeFinding) as raised:
        make_task(lock_of(tmp_path)).collate([target])
    assert raised.value.code == "R541"


def test_every_weight_of_the_head_gets_a_gradient_on_pyramids(tmp_path: Path) -> None:
    lock = lock_of(tmp_path, model__multi_scale=True, data__scales=[1.0, 0.5])
    torch.manual_seed(0)
    task, model = make_task(lock), build_model(lock)
    output = model([torch.rand(2, 1, 32, 32), torch.rand(2, 1, 16, 16)])
    assert (output["logits"].shape, output["boxes"].shape) == ((2, 2, 6, 3), (2, 2, 6, 4))
    assert bool(((output["boxes"] >= 0) & (output["boxes"] <= 1)).all())
    loss: Any = task.loss()(output, task.example_target(2, torch.device("cpu")))
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    # RAT's own, which only masked inputs use.
    assert [name for name in without if "mask_embedding" not in name] == []


def small_set(folder: Path) -> None:
    """Write images of noise with bright squares, the same at every call."""
    random = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train", 9), ("val", 3), ("test", 3)):
        (folder / "images" / split).mkdir(parents=True)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "square"}]}
        for number in range(count):
            pixels = random.integers(0, 80, (32, 32), dtype=np.uint8)
            for _ in range(number % 3):  # none in some of them
                x, y, side = (int(value) for value in random.integers(4, 14, 3))
                pixels[y : y + side, x : x + side] = 255
                box = {"image_id": number, "category_id": 5, "bbox": [x, y, side, side]}
                content["annotations"].append({"id": len(content["annotations"]) + 1, **box})
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            content["images"].append({"id": number, "file_name": f"{number}.png", "width": 32, "height": 32})
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_two_processes_give_the_losses_and_scores_of_one(tmp_path: Path) -> None:
    """Images have none, one or two objects: a loss over the objects of a batch would depend on who has which."""
    small_set(tmp_path / "data")
    content = yaml.safe_load((lock_of(tmp_path), tmp_path / "lock.yaml")[1].read_text())
    found = []
    for name, processes, micro in (("one", 1, 4), ("two", 2, 1)):
        changed = copy.deepcopy(content)
        changed["output_dir"] = f"out-{name}"
        changed["model"]["args"]["mlp_dropout"] = 0.0
        changed["training"] |= {
            "epochs": 1,
            "micro_batch_size": micro,
            "gradient_accumulation_steps": 4 // micro // processes,
        }
        changed["training"]["gradient_clipping"] = None
        changed["data"] |= {"num_classes": 1, "class_names": ["square"]}
        changed["parallel"] |= {"world_size": processes, "processes_per_node": processes}
        lock = write_lock(tmp_path / name)
        lock.write_text(yaml.safe_dump(changed))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes > 1 else []
        command = [sys.executable, *launcher, "-m", "ratc_runtime.train", "--lock", str(lock)]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANGS_S)
        assert done.returncode == 0, done.stderr
        assert "test mAP" in done.stdout
        found.append(results(tmp_path / f"out-{name}"))
    one, two = found
    for key in ("train_loss", "val_loss"):
        assert two["epochs"][0][key] == pytest.approx(one["epochs"][0][key], rel=1e-4)
    assert set(one["test"]) >= {"map", "map_50", "map_75", "map/square"}
    assert two["test"]["map"] == pytest.approx(one["test"]["map"], abs=1e-3)
    assert two["baseline"] == pytest.approx(one["baseline"])
    assert len(list((tmp_path / "out-two" / "overlays").glob("*.png"))) == 3
    # The checkpoint of two processes, put to use by one.
    checkpoint, scores = str(tmp_path / "out-two"), tmp_path / "scores.json"
    assert evaluate.main([checkpoint, "--data-dir", str(tmp_path / "data"), "-o", str(scores)]) == 0
    assert json.loads(scores.read_text())["scores"]["map"] == pytest.approx(two["test"]["map"], abs=1e-6)
    images = str(tmp_path / "data/images/test")
    assert predict.main([checkpoint, images, "-o", str(tmp_path / "boxes"), "--threshold", "0.01"]) == 0
    boxes = json.loads((tmp_path / "boxes/detections.json").read_text())
    assert [image["file_name"] for image in boxes["images"]] == ["0.png", "1.png", "2.png"]
    assert boxes["annotations"]


@pytest.mark.parametrize("attention", ["chunked", "fused"])
def test_lean_attention_detects_with_the_same_gradients(tmp_path: Path, attention: str) -> None:
    def step(kind: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        lock = lock_of(tmp_path, model__attention_memory=kind, data__scales=[1.0, 0.5], model__multi_scale=True)
        model, task = build_model(lock).double().eval(), make_task(lock)
        torch.manual_seed(1)
        outputs = model([torch.rand(2, 1, 32, 32).double(), torch.rand(2, 1, 16, 16).double()])
        loss = task.loss()(outputs, task.example_target(2, torch.device("cpu")))
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    with fused_maps.instead(attend):
        for found, expected in zip(step(attention), step("full"), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
