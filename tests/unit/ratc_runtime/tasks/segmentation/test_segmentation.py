"""Segmentation of several classes: losses, scores, distances, the baseline, masks of class numbers, and pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.data.sources import open_split
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.build import build_model
from ratc_runtime.tasks import make_task, metrics
from ratc_runtime.tasks.segmentation import baseline
from ratc_runtime.tasks.segmentation.hausdorff import Hausdorff, distances
from ratc_runtime.tasks.segmentation.losses import Bce, ClassCombined, ClassDice, CrossEntropy
from ratc_runtime.tasks.segmentation.metrics import Overlap, counts
from scipy.spatial.distance import directed_hausdorff

from tests.effort import examples
from tests.helpers.lockfile import write_data, write_lock

ALONE = World(0, 1, torch.device("cpu"))
NAMES = ["background", "cell", "nucleus"]


def classes(folder: Path, **changes: Any) -> Lock:
    return read_lock(write_lock(folder, data__num_classes=3, data__class_names=NAMES, **changes))


def logits_of(target: torch.Tensor, number: int = 3, sure: float = 50.0) -> torch.Tensor:
    one_hot = torch.nn.functional.one_hot(target, number).movedim(-1, 1)
    return (one_hot.float() * 2 - 1) * sure


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 6, 4, 5)])
def test_class_losses_equal_known_values(shape: tuple[int, ...]) -> None:
    target = torch.arange(math.prod(shape)).reshape(shape) % 3
    even = torch.zeros(shape[0], 3, *shape[1:])
    assert CrossEntropy(3, None)(even, target).item() == pytest.approx(math.log(3))
    right, wrong = logits_of(target), logits_of((target + 1) % 3)
    for loss in (CrossEntropy(3, None), ClassDice(3, None), ClassCombined(3, None)):
        assert loss(right, target).item() == pytest.approx(0, abs=1e-6)
        assert loss(wrong, target).item() > 0.9
        assert loss(right.bfloat16(), target).dtype == torch.float32
    # A class that is nowhere costs nothing where nothing of it is predicted.
    empty = torch.zeros(shape, dtype=torch.long)
    assert ClassDice(3, None)(logits_of(empty), empty).item() == pytest.approx(0, abs=1e-6)


def test_ignored_pixels_change_no_loss_and_no_score() -> None:
    torch.manual_seed(0)
    target = torch.randint(3, (4, 8, 8))
    target[:, :3] = 255
    target[3] = 255  # a sample without a label
    logits = torch.randn(4, 3, 8, 8, requires_grad=True)
    other = logits.detach().clone()
    other[(target == 255)[:, None].expand_as(other)] = torch.randn(int((target == 255).sum()) * 3) * 9
    for loss in (CrossEntropy(3, 255), ClassDice(3, 255), ClassCombined(3, 255)):
        assert loss(other, target).item() == pytest.approx(loss(logits, target).item(), rel=1e-6)
        # A batch in pieces has the loss of the whole one.
        parts = [loss(logits[:2], target[:2]), loss(logits[2:], target[2:])]
        assert sum(part.item() for part in parts) / 2 == pytest.approx(loss(logits, target).item(), rel=1e-5)
    ClassCombined(3, 255)(logits, target).backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad.movedim(1, -1)[target == 255].any()
    found = [counts(given.argmax(1), target, 3, 255) for given in (logits, other)]
    assert torch.equal(*found)


def test_scores_by_class_leave_out_an_absent_class() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[:, 0] = 1
    predicted = target.clone()
    predicted[0, 0, 0] = 0
    scorer = Overlap(["cell", "nucleus", "wall"])
    scorer.add(logits_of(predicted, 4), target)
    extra = torch.zeros(1, 4, 4, dtype=torch.long)
    extra[0, 3, 3] = 2
    scorer.add(logits_of(extra, 4), torch.zeros_like(target))
    found = scorer.scores(ALONE)
    assert found["dice/cell"] == pytest.approx(6 / 7)
    assert found["iou/cell"] == pytest.approx(3 / 4)
    assert found["dice/nucleus"] == 0
    assert math.isnan(found["dice/wall"])
    assert found["dice"] == pytest.approx(3 / 7)


def test_a_model_with_outputs_of_another_shape_is_refused() -> None:
    for loss, target in ((CrossEntropy(3, None), torch.zeros(2, 4, 4).long()), (Bce(), torch.zeros(2, 1, 4, 4))):
        with pytest.raises(RuntimeFinding, match=r"R538.*2x2x4x4") as raised:
            loss(torch.zeros(2, 2, 4, 4), target)
        assert "2x3x4x4" in str(raised.value) or "2x1x4x4" in str(raised.value)


@settings(max_examples=examples(30), deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(9, 12), (5, 6, 7)]))
def test_the_distance_is_measured_between_surfaces(seed: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    masks = [random.random(shape) > 0.7 for _ in range(2)]
    found = distances(masks[0], masks[1], spacing=0.5)
    points = []
    for mask in masks:
        padded = np.pad(mask, 1)
        inner = np.logical_and.reduce([np.roll(padded, step, axis) for axis in range(mask.ndim) for step in (1, -1)])
        points.append(np.argwhere(padded & ~inner) * 0.5)
    if not all(len(one) for one in points):
        return
    assert found is not None
    largest = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
    assert found[1] == pytest.approx(largest)
    assert found[0] <= found[1]


def test_distances_of_squares_and_of_empty_masks() -> None:
    one = torch.zeros(3, 20, 20, dtype=torch.long)
    one[0, 2:8, 2:8] = 1
    other = one.clone()
    other[0] = torch.roll(one[0], 3, dims=1)
    other[1, 0, 0] = 1  # only here: no distance
    measured = Hausdorff(3, 2.0)
    measured.add(one, other)
    found = measured.scores(ALONE)
    assert found["hausdorff"] == 6.0
    assert found["hausdorff95"] == 6.0
    assert found["hausdorff_undefined"] == 1
    assert all(math.isnan(value) for value in list(Hausdorff(3, 1.0).scores(ALONE).values())[:2])


def test_distances_are_computed_only_if_requested(tmp_path: Path) -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[:, 2:5, 2:5] = 1
    for asked in (False, True):
        lock = classes(tmp_path, evaluation__hausdorff=asked)
        scorer = make_task(lock).scorer()
        scorer.add(logits_of(target), target)
        assert ("hausdorff95" in scorer.scores(ALONE)) is asked
        assert ("hausdorff95" in metrics(lock)) is asked
    with pytest.raises(RuntimeFinding, match="best_metric"):
        classes(tmp_path, checkpoint__best_metric="hausdorff95")


def test_the_baseline_of_several_classes_is_a_mean_mask_for_each() -> None:
    class Stack:
        def __init__(self, masks: torch.Tensor) -> None:
            self.masks = masks

        def __len__(self) -> int:
            return len(self.masks)

        def target(self, index: int) -> torch.Tensor:
            return self.masks[index]

    train = torch.tensor([[[0, 1, 2, 0]], [[0, 1, 255, 0]], [[1, 2, 2, 0]]])
    test = torch.tensor([[[0, 1, 1, 255]]])
    found = baseline.evaluate(Stack(train), Stack(test), ALONE, 3, 255)
    # Class 1 is best cut to the second pixel (one hit, one missed), class 2 to the third (one too many).
    assert found == {"dice": pytest.approx((2 / 3 + 0) / 2), "iou": pytest.approx((1 / 2 + 0) / 2)}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Discs, and a class of its own in a corner; masks with a palette."""
    splits = write_data(tmp_path / "data")
    for name in (name for names in splits.values() for name in names):
        path = tmp_path / "data/masks" / f"{name}_segmentation.png"
        numbers = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
        numbers[1:4, 1:4] = 2
        picture = Image.fromarray(numbers)
        picture.putpalette([0, 0, 0, 0, 114, 178, 230, 159, 0])
        picture.save(path)
    return tmp_path


def test_masks_with_a_palette_are_class_numbers(labelled: Path) -> None:
    lock = classes(labelled / "compiled")
    item = open_split(lock, labelled / "data", "train")[0]
    assert item["target"].dtype == torch.uint8
    assert item["target"].shape == (32, 32)
    assert item["target"].unique().tolist() == [0, 1, 2]
    task, model = make_task(lock), build_model(lock)
    target = task.collate([item["target"]] * 2)
    logits = model(torch.stack([item["image"]] * 2))
    assert logits.shape == (2, 3, 32, 32)
    task.loss()(logits, target).backward()
    assert task.example_target(2, torch.device("cpu")).shape == target.shape
    assert task.example_target(2, torch.device("cpu")).dtype == target.dtype


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda mask: np.where(mask == 2, 7, mask), "train3_segmentation.png holds the value 7, which is not a class"),
        (lambda mask: np.stack([mask] * 3, axis=2), r"train3_segmentation.png holds several channels \(RGB\)"),
    ],
)
def test_a_mask_without_class_numbers_is_named(labelled: Path, change: Any, says: str) -> None:
    path = labelled / "data/masks/train3_segmentation.png"
    Image.fromarray(change(np.asarray(Image.open(path))).astype(np.uint8)).save(path)
    data = open_split(classes(labelled / "compiled"), labelled / "data", "train")
    with pytest.raises(RuntimeFinding, match=says) as raised:
        data[3]
    assert raised.value.code == "R536"
    assert not raised.value.everywhere


def test_one_mask_value_may_mark_ignored_pixels(labelled: Path) -> None:
    path = labelled / "data/masks/train3_segmentation.png"
    mask = np.array(Image.open(path))
    mask[0] = 255
    Image.fromarray(mask).save(path)
    lock = classes(labelled / "compiled", data__ignore_index=255)
    assert open_split(lock, labelled / "data", "train").target(3).unique().tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize("shape", [(24, 40), (12, 24, 20)])
@pytest.mark.parametrize("number", [2, 12])
def test_pictures_of_class_masks_are_drawn(tmp_path: Path, shape: tuple[int, ...], number: int) -> None:
    names = ["background", *(f"class {n}" for n in range(1, number))]
    dims = {"data__image_size": list(shape)}
    lock = read_lock(write_lock(tmp_path, data__num_classes=number, data__class_names=names, **dims))
    task = make_task(lock)
    target = torch.randint(number, (1, *shape))
    made = task.picture(0, "a sample@0,1", torch.rand(1, *shape), target, torch.randn(1, number, *shape))
    assert made.truth.shape == shape
    [path] = task.draw(tmp_path / "overlays", [made])
    with Image.open(path) as picture:
        assert min(picture.size) > 200
