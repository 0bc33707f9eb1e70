"""Volumes in patches: every voxel once, in any orientation of the file; and three-dimensional models."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.data import volume_store
from ratc_runtime.data.sources import open_split
from ratc_runtime.data.unlabelled import pieces
from ratc_runtime.data.volumes import corners, cut
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import fused_maps
from ratc_runtime.models.build import build_model
from ratc_runtime.tasks import make_task

from tests.effort import examples
from tests.helpers.lockfile import write_lock
from tests.helpers.reference_attention import attend

PATCH = [8, 10, 12]
RAT = {
    "spatial_dims": 3,
    "input_features": 1,
    "feature_dims": 16,
    "num_blocks": 2,
    "num_heads": 2,
    "iters": 1,
    "proj_kernel_size": 3,
    "sga_kernel_size": 3,
    "stride": 2,
}


def lock_of(folder: Path, **changes: Any) -> Lock:
    known = {
        "data__dataset": "volumes",
        "data__image_size": PATCH,
        "data__num_classes": 3,
        "data__class_names": ["background", "shell", "core"],
        "model__args": RAT,
    }
    return read_lock(write_lock(folder / "compiled", **{**known, **changes}))


def volume(shape: tuple[int, ...], seed: int) -> tuple[Any, Any]:
    """Return voxels (right, anterior, superior) and classes: a ball in a shell, on noise."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    classes = np.where(radius < 0.4, 2, np.where(radius < 0.8, 1, 0)).astype(np.uint8)
    return (100 * classes + random.integers(0, 50, shape)).astype(np.int16), classes


def save(folder: Path, name: str, image: Any, mask: Any, affine: Any = None, suffix: str = ".nii.gz") -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    for sub, stem, array in (("images", name, image), ("masks", f"{name}_segmentation", mask)):
        (folder / sub).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / sub / f"{stem}{suffix}")


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for number, name in enumerate(("a", "b", "c")):
        save(tmp_path / "data", name, *volume((20, 13, 9 + number), number))
    (tmp_path / "data/splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"], "test": ["c"]}))
    return tmp_path


@settings(max_examples=examples(80), deadline=None)
@given(st.tuples(*[st.integers(1, 30)] * 3), st.tuples(*[st.integers(1, 12)] * 3), st.sampled_from([0.0, 0.3, 0.5]))
def test_the_grid_covers_every_voxel(shape: tuple[int, ...], size: tuple[int, ...], overlap: float) -> None:
    voxels = np.arange(1, np.prod(shape) + 1).reshape(shape)
    seen = np.zeros(voxels.size + 1, dtype=int)
    for corner in corners(shape, size, overlap):
        patch = cut(voxels, corner, size)
        assert patch.shape == size
        np.add.at(seen, patch.ravel(), 1)
    assert (seen[1:] == 1).all() if overlap == 0 else (seen[1:] >= 1).all()


def test_patches_reassemble_to_the_volume(volumes: Path) -> None:
    data = open_split(lock_of(volumes), volumes / "data", "train")
    image, classes = volume((20, 13, 9), 0)
    assert len(data) == 2 * 2 * 2
    whole, labels = np.zeros((9, 13, 20), np.float32), np.full((9, 13, 20), 9)
    for index, patch in enumerate(data.patches):
        item = data[index]
        assert item["image"].shape == (1, *PATCH)
        assert torch.equal(item["target"], data.target(index))
        assert item["name"] == f"a@{','.join(map(str, patch.corner))}"
        at = tuple(slice(max(0, low), low + side) for low, side in zip(patch.corner, PATCH, strict=True))
        inside = tuple(slice(max(0, -low), None) for low in patch.corner)
        some = item["image"][0].numpy()[inside][tuple(slice(0, n) for n in whole[at].shape)]
        whole[at] = some
        labels[at] = item["target"].numpy()[inside][tuple(slice(0, n) for n in whole[at].shape)]
    # First axis superior, then anterior, then right.
    assert np.array_equal(labels, classes.transpose(2, 1, 0))
    low, high = np.percentile(image.astype(np.float32), (0.5, 99.5))
    expected = np.clip((image.transpose(2, 1, 0) - low) / (high - low), 0, 1)
    assert np.allclose(whole, expected, atol=1e-6)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
def test_the_orientation_of_a_file_does_not_change_its_patches(
    volumes: Path, axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    image, mask = volume((20, 13, 9), 0)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    straight = nibabel.Nifti1Image(image, affine)
    codes = np.array([[axes[n], flips[n]] for n in range(3)], dtype=float)
    turned = [nibabel.Nifti1Image(array, affine).as_reoriented(codes) for array in (image, mask)]
    assert turned[0].shape != straight.shape or not np.array_equal(turned[0].affine, affine) or axes == (0, 1, 2)
    arrays = [np.asarray(one.dataobj) for one in turned]
    save(volumes / "data", "b", *arrays, affine=turned[0].affine, suffix=".nii")
    (volumes / "data/images/b.nii.gz").unlink()
    (volumes / "data/masks/b_segmentation.nii.gz").unlink()
    lock = lock_of(volumes)
    one, other = (open_split(lock, volumes / "data", split) for split in ("train", "val"))
    assert [patch.corner for patch in one.patches] == [patch.corner for patch in other.patches]
    for index in range(len(one)):
        assert torch.equal(one[index]["image"], other[index]["image"])
        assert torch.equal(one.target(index), other.target(index))


def test_an_intensity_window_is_applied_and_channels_are_read(volumes: Path) -> None:
    image, mask = volume((20, 13, 9), 0)
    several = np.stack([image, image * 0 + 7, image[::-1]], axis=-1).astype(np.float32)
    save(volumes / "data", "a", several, mask)
    lock = lock_of(volumes, data__channels=3, data__args={"window": [50, 150]})
    item = open_split(lock, volumes / "data", "train")[0]["image"]
    assert item.shape == (3, *PATCH)
    assert torch.isfinite(item).all()
    assert (item.min(), item.max()) == (0, 1)
    flat = open_split(lock_of(volumes, data__channels=3), volumes / "data", "train")[0]["image"][1]
    assert not flat.any()
    more = open_split(lock_of(volumes, data__channels=3, data__args={"overlap": 0.5}), volumes / "data", "train")
    assert len(more) == 2 * 2 * 3


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e300])
def test_nan_voxels_are_refused_or_filled_as_the_spec_says(volumes: Path, wrong: float) -> None:
    image, mask = volume((20, 13, 9), 0)
    spoilt = image.astype(np.float64)
    spoilt[3, 0, 0] = wrong
    save(volumes / "data", "a", spoilt, mask)
    with pytest.raises(RuntimeFinding, match=r"R506.*a.nii.gz holds NaN or infinity") as raised:
        open_split(lock_of(volumes), volumes / "data", "train")[0]
    assert raised.value.note == f"1 of {20 * 13 * 9} voxels are not finite"
    assert "fill_nan" in raised.value.help

    def first(**arguments: float) -> torch.Tensor:
        return open_split(lock_of(volumes, data__args={"window": [0, 200], **arguments}), volumes / "data", "train")[0]

    filled = first(fill_nan=50)["image"]
    assert torch.isfinite(filled).all()
    spoilt[3, 0, 0] = 50
    save(volumes / "data", "a", spoilt, mask)
    assert torch.equal(first()["image"], filled)


@pytest.mark.parametrize("window", [["a", "b"], [5, 5], [5, 1]])
def test_a_window_of_zero_width_is_refused(volumes: Path, window: list[Any]) -> None:
    with pytest.raises(RuntimeFinding, match=r"R506.*window"):
        open_split(lock_of(volumes, data__args={"window": window}), volumes / "data", "train")


def test_prediction_fills_nan_voxels_like_training(volumes: Path) -> None:
    image = volume((8, 10, 8), 0)[0].astype(np.float32)
    image[3, 0, 0] = np.nan
    save(volumes, "new", image, image * 0)
    paths = [volumes / "images/new.nii.gz"]
    refused = list(pieces(paths, lock_of(volumes)))
    assert "NaN or infinity" in str(refused[0].problem)
    filled = list(pieces(paths, lock_of(volumes, data__args={"fill_nan": 50})))
    assert all(torch.isfinite(piece.image).all() for piece in filled)


@pytest.mark.parametrize("fill", ["0", True, 1e31])
def test_a_fill_value_that_is_not_finite_is_refused(volumes: Path, fill: Any) -> None:
    with pytest.raises(RuntimeFinding, match=r"R509.*fill_nan"):
        open_split(lock_of(volumes, data__args={"fill_nan": fill}), volumes / "data", "train")


def test_a_volume_of_one_class_gives_a_pyramid_and_a_mask(volumes: Path) -> None:
    lock = lock_of(
        volumes,
        data__num_classes=1,
        data__class_names=["tissue"],
        data__args={"mask_threshold": 1},
        data__scales=[1.0, 0.5],
        model__multi_scale=True,
    )
    item = open_split(lock, volumes / "data", "train")[3]
    assert [tuple(level.shape) for level in item["image"]] == [(1, *PATCH), (1, 4, 5, 6)]
    blocks = item["image"][0].reshape(4, 2, 5, 2, 6, 2).mean((1, 3, 5))
    assert torch.allclose(item["image"][1][0], blocks, atol=1e-6)
    assert item["target"].shape == (1, *PATCH)
    assert item["target"].dtype == torch.float32
    model, task = build_model(lock), make_task(lock)
    logits = model([level[None] for level in item["image"]])
    assert logits.shape == (1, 1, *PATCH)
    assert model.spacings == [(1.0,) * 3, (2.0,) * 3]
    task.loss()(logits, task.collate([item["target"]])).backward()


def test_a_volume_of_several_labels_is_refused_as_a_binary_mask(volumes: Path) -> None:
    lock = lock_of(volumes, data__num_classes=1, data__class_names=["tissue"])
    with pytest.raises(RuntimeFinding, match=r"R570.*a_segmentation") as raised:
        open_split(lock, volumes / "data", "train")[3]
    assert "values: 0, 1, 2" in raised.value.note
    assert "data.num_classes: 3" in raised.value.help
    assert "mask_threshold" in raised.value.help


def test_a_volume_larger_than_memory_is_not_decoded(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_split(lock_of(volumes), volumes / "data", "train")
    monkeypatch.setattr(volume_store, "_memory_bytes", lambda: 1000)
    monkeypatch.setattr(volume_store, "folder_of_maps", lambda: None)
    with pytest.raises(RuntimeFinding, match=r"R506.*cannot be decoded") as raised:
        data[0]
    assert "more than the machine has" in raised.value.note


def broken_size(data: Path) -> str:
    save(data, "a", volume((20, 13, 9), 0)[0], volume((20, 13, 8), 0)[1])
    return "R537.*20 x 13 x 9 voxels, its mask 20 x 13 x 8"


def broken_place(data: Path) -> str:
    nibabel.save(
        nibabel.Nifti1Image(volume((20, 13, 9), 0)[1], np.diag([1, 1, 2.5, 1])), data / "masks/a_segmentation.nii.gz"
    )
    return "R537.*different places"


def broken_header(data: Path) -> str:
    (data / "images/a.nii.gz").write_bytes(b"no volume")
    return "R506.*a.nii.gz cannot be decoded"


def cut_off(data: Path) -> str:
    path = data / "images/a.nii.gz"
    path.write_bytes(path.read_bytes()[:-400])
    return "R506.*a.nii.gz cannot be decoded"


def wrong_class(data: Path) -> str:
    image, mask = volume((20, 13, 9), 0)
    save(data, "a", image, mask * 3)
    return "R536.*value [36], which is not a class"


def nothing(data: Path) -> str:
    nan = np.full((20, 13, 9), np.nan, dtype=np.float32)
    save(data, "a", nan, volume((20, 13, 9), 0)[1])
    return "R506.*a.nii.gz cannot be decoded"


def two_files(data: Path) -> str:
    (data / "images/a.nii").write_bytes(b"")
    return "R506.*sample a of split train has 2 files"


@pytest.mark.parametrize("breaks", [nothing, two_files, broken_size, broken_place, broken_header, cut_off, wrong_class])
def test_invalid_volumes_are_named(volumes: Path, breaks: Any) -> None:
    says = breaks(volumes / "data")
    with pytest.raises(RuntimeFinding, match=says):
        open_split(lock_of(volumes), volumes / "data", "train")[0]


def test_a_bad_volume_is_skipped_if_the_spec_says_so(volumes: Path) -> None:
    broken_header(volumes / "data")
    (volumes / "data/splits.json").write_text(json.dumps({"train": ["a", "b", "gone"], "val": ["c"]}))
    data = open_split(lock_of(volumes, data__on_bad_sample="skip"), volumes / "data", "train")
    assert sorted(data.missing) == ["a", "gone"]
    assert {name.partition("@")[0] for name in data.names} == {"b"}


def test_a_volume_is_decoded_again_only_if_its_file_changes(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    decode = volume_store.decode
    monkeypatch.setattr(
        volume_store, "decode", lambda volume, recipe: (decoded.append(volume.name), decode(volume, recipe))[1]
    )
    lock = lock_of(volumes)

    def first() -> torch.Tensor:
        data = pickle.loads(pickle.dumps(open_split(lock, volumes / "data", "train")))  # as a loader process has it
        return data[0]["image"]

    before = first()
    assert torch.equal(first(), before)
    assert decoded == ["a"]
    folder = volume_store.folder_of_maps()
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    next(folder.glob("*.image.npy")).write_bytes(b"cut off")
    assert torch.equal(first(), before)
    assert decoded == ["a", "a"]
    save(volumes / "data", "a", volume((20, 13, 9), 5)[0], volume((20, 13, 9), 0)[1])
    assert not torch.equal(first(), before)
    assert decoded == ["a", "a", "a"]
    monkeypatch.setattr("tempfile.tempdir", str(volumes / "not there"))
    assert volume_store.folder_of_maps() is None
    again = open_split(lock, volumes / "data", "train")
    assert torch.equal(again[0]["image"], first())


@pytest.mark.parametrize(
    "changed",
    [
        {"model__attention_memory": "chunked"},
        {"model__attention_memory": "fused"},
        {"training__activation_checkpointing": True},
        {"model__attention_memory": "fused", "training__activation_checkpointing": True},
    ],
)
def test_memory_saving_options_give_the_same_gradients_in_3d(tmp_path: Path, changed: dict[str, Any]) -> None:
    def step(**changes: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(0)
        lock = lock_of(tmp_path, data__scales=[1.0, 0.5], model__multi_scale=True, **changes)
        model, task = build_model(lock).double(), make_task(lock)
        torch.manual_seed(1)
        images = [torch.rand(2, 1, *PATCH).double(), torch.rand(2, 1, 4, 5, 6).double()]
        logits = model(images)
        task.loss()(logits, task.example_target(2, torch.device("cpu"))).backward()
        return logits, [p.grad for p in model.parameters() if p.grad is not None]

    with fused_maps.instead(attend):
        (logits, gradients), (other, others) = step(), step(**changed)
    assert torch.allclose(logits, other, rtol=1e-5, atol=1e-6)
    for one, two in zip(gradients, others, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["full", "chunked", "fused"])
def test_a_3d_model_trains_in_bf16(tmp_path: Path, attention: str) -> None:
    lock = lock_of(tmp_path, model__attention_memory=attention)
    model, task = build_model(lock), make_task(lock)
    with fused_maps.instead(attend):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = task.loss()(model(torch.rand(2, 1, *PATCH)), task.example_target(2, torch.device("cpu")))
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        # As DeepSpeed makes them.
        assert build_model(lock).bfloat16()(torch.rand(1, 1, *PATCH).bfloat16()).dtype == torch.bfloat16
