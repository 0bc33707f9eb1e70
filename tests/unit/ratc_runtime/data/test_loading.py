"""Loaders: a step's samples depend only on seed and epoch; bad samples are named and counted."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ratc_runtime.data import isic
from ratc_runtime.data.loading import Batch, Loader, evaluation_loader, train_loader
from ratc_runtime.data.sources import open_split
from ratc_runtime.errors import RuntimeFinding
from torch.utils.data import default_collate

from tests.effort import examples
from tests.helpers.lockfile import lock_with, write_data

AUGMENTATIONS = [
    {"RandomHorizontalFlip": {"p": 0.5}},
    {"RandomAffine": {"degrees": 20, "translate": [0.1, 0.1]}},
    {"GaussianNoise": {"sigma": 0.05}},
]
GLOBAL, STEPS = 8, 3


def collate(targets: Any) -> Any:
    return default_collate(list(targets))


class Noisy:
    """A data set of the user's that draws random numbers from all three generators that people use."""

    def __init__(self, length: int = 26) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        import random

        if index >= self.length:
            raise IndexError(index)
        noise = np.float32(np.random.rand()) + random.random()
        image = torch.full((1, 4, 4), float(index)) + torch.rand(1, 4, 4) + noise
        return {"image": image, "target": (image > index).float()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    write_data(folder, train=GLOBAL * STEPS + 2, val=5)
    return folder


def loaders(folder: Path, data: Path, foreign: bool, workers: int, world: int, **changes: Any) -> list[Loader]:
    """The training loaders of all ranks."""
    micro = min(2, GLOBAL // world)
    lock = lock_with(
        folder,
        training__global_batch_size=GLOBAL,
        training__micro_batch_size=micro,
        training__gradient_accumulation_steps=GLOBAL // world // micro,
        parallel__world_size=world,
        parallel__processes_per_node=world,
        data__num_workers=workers,
        data__prefetch_factor=2 if workers else None,
        data__persistent_workers=workers > 0,
        data__augmentations=[] if foreign else AUGMENTATIONS,
        data__dataset="tests:Noisy" if foreign else "isic",
        **changes,
    )
    dataset = Noisy() if foreign else open_split(lock, data, "train")
    return [train_loader(dataset, lock, rank, collate) for rank in range(world)]


def epoch(ranks: list[Loader], number: int, first: int = 0) -> list[tuple[Any, ...]]:
    """What all ranks together see in each step from the first on: names, images and targets in order of the batch."""
    parts = []
    for loader in ranks:
        loader.order.epoch, loader.order.first_step = number, first
        parts.append(list(loader))
    per_step = len(parts[0]) // (STEPS - first)
    steps = []
    for step in range(STEPS - first):
        batches = [batch for part in parts for batch in part[step * per_step : (step + 1) * per_step]]
        steps.append(
            (
                [name for batch in batches for name in batch.names],
                torch.cat([batch.image for batch in batches]),
                torch.cat([batch.target for batch in batches]),
            )
        )
    return steps


def same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in zip(one, other, strict=True)
    )


@settings(max_examples=examples(12), deadline=None)
@given(
    foreign=st.booleans(),
    workers=st.sampled_from([0, 0, 1, 3]),
    world=st.sampled_from([1, 2, 4]),
    number=st.integers(0, 2),
    first=st.integers(0, STEPS - 1),
)
def test_an_epoch_does_not_depend_on_workers_world_size_or_start(
    tmp_path_factory: pytest.TempPathFactory,
    data: Path,
    foreign: bool,
    workers: int,
    world: int,
    number: int,
    first: int,
) -> None:
    folder = tmp_path_factory.mktemp("locks")
    wanted = epoch(loaders(folder, data, foreign, 0, 1), number)
    ranks = loaders(folder, data, foreign, workers, world)
    try:
        torch.manual_seed(workers)
        before = torch.get_rng_state()
        assert same(epoch(ranks, number, first), wanted[first:])
        assert torch.equal(torch.get_rng_state(), before), "the model's random numbers are its own"
        assert not same(epoch(ranks, number + 1, first), wanted[first:])
    finally:
        for loader in ranks:
            loader.close()


def test_a_prefetched_epoch_holds_the_same_batches(tmp_path: Path, data: Path) -> None:
    (plain,), (ahead,) = (loaders(tmp_path, data, False, workers, 1) for workers in (0, 1))
    try:
        first, second = epoch([plain], 0), epoch([plain], 1)
        ahead.begin(0)
        assert same(epoch([ahead], 0), first)
        ahead.begin(1)
        assert same(epoch([ahead], 1), second)
        ahead.begin(1)
        assert same(epoch([ahead], 0, 1), first[1:]), "another pass than the one begun starts again"
    finally:
        ahead.close()


def test_evaluation_is_not_augmented_and_keeps_its_workers(tmp_path: Path, data: Path) -> None:
    changes = {"data__augmentations": AUGMENTATIONS, "data__persistent_workers": True, "data__prefetch_factor": 2}
    lock = lock_with(tmp_path, data__num_workers=1, **changes)
    dataset = open_split(lock, data, "val")
    loader = evaluation_loader(dataset, lock, 0, collate)
    try:
        for _ in range(2):
            batches = list(loader)
            images = torch.cat([batch.image for batch in batches])
            assert torch.equal(images, torch.stack([dataset[index]["image"] for index in (0, 1, 2, 3, 4)]))
            assert [batch.position.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
            assert torch.cat([batch.weight for batch in batches]).tolist() == [1.0] * 5
            workers = loader._live._workers
            assert workers[0].is_alive()
        assert loader._live._workers is workers
    finally:
        loader.close()


def damaged(folder: Path, kind: str) -> str:
    """Damage one training sample; return what is said of it."""
    image, mask = folder / "images/train3.png", folder / "masks/train3_segmentation.png"
    if kind == "truncated png":
        image.write_bytes(image.read_bytes()[:300])
        return "train3.png cannot be decoded"
    if kind == "truncated jpeg":
        Image.open(image).save(image.with_suffix(".jpg"), quality=95)
        image.unlink()
        raw = image.with_suffix(".jpg").read_bytes()
        image.with_suffix(".jpg").write_bytes(raw[: len(raw) // 2])
        return "train3.jpg cannot be decoded"
    if kind == "zero bytes":
        mask.write_bytes(b"")
        return "train3_segmentation.png cannot be decoded"
    if kind == "sixteen bits":
        Image.fromarray(np.full((32, 32), 3000, dtype=np.uint16)).save(image)
        return "more than 8 bits a channel"
    if kind == "another size":
        Image.open(mask).resize((16, 32)).save(mask)
        return "train3_segmentation.png has 16 x 32 pixels, its image 32 x 32"
    if kind == "bomb":
        image.write_bytes(bomb(60_000))
        return "DecompressionBombError"
    if kind == "folder":
        image.unlink()
        image.mkdir()
        return "IsADirectoryError"
    assert kind == "no permission"
    return "PermissionError"


def bomb(side: int) -> bytes:
    """A small PNG that says that it is large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * (side + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


KINDS = (
    "truncated png",
    "truncated jpeg",
    "zero bytes",
    "sixteen bits",
    "another size",
    "bomb",
    "folder",
    "no permission",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named_or_is_skipped_and_counted(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path / "data", train=12)
    said = damaged(tmp_path / "data", kind)
    if kind == "no permission":  # root, as whom tests may run, may read everything
        really = isic.Image.open

        def refuse(path: Any, *rest: Any) -> Any:
            if "train3" in str(path):
                raise PermissionError(13, "Permission denied")
            return really(path, *rest)

        monkeypatch.setattr(isic.Image, "open", refuse)
    for policy in ("fail", "skip"):
        lock = lock_with(tmp_path / "lock", data__on_bad_sample=policy)
        loader = train_loader(open_split(lock, tmp_path / "data", "train"), lock, 0, collate)
        if policy == "fail":
            with pytest.raises(RuntimeFinding) as caught:
                list(loader)
            assert caught.value.code == "R506"
            assert said in caught.value.render()
            assert "data.on_bad_sample: skip" in caught.value.help
        else:
            batches = list(loader)
            assert sum(len(batch.names) for batch in batches) == 12
            assert "train3" not in [name for batch in batches for name in batch.names]
            assert loader.skipped == {"train3"}


class Broken:
    """A data set whose samples are what a table says."""

    names = tuple(f"s{index}" for index in range(40))

    def __init__(self, special: dict[int, Any]) -> None:
        self.special = special

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        found = self.special.get(index, {"image": np.ones((1, 4, 4), np.float32), "target": torch.ones(1, 4, 4)})
        if isinstance(found, Exception):
            raise found
        return found


def passed(folder: Path, special: dict[int, Any], policy: str = "fail", **changes: Any) -> tuple[Loader, list[Batch]]:
    lock = lock_with(folder, data__dataset="tests:Broken", data__on_bad_sample=policy, **changes)
    loader = train_loader(Broken(special), lock, 0, collate)
    return loader, list(loader)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (
            {"image": np.full((1, 4, 4), np.nan, np.float32), "target": torch.ones(1, 4, 4)},
            "image has 16 numbers of 16",
        ),
        (
            {"image": torch.ones(1, 4, 4), "target": torch.tensor([[[1.0, float("inf")]]])},
            "target has 1 number of 2",
        ),
        ({"picture": torch.ones(1, 4, 4)}, "not a dict with picture"),
        ({}, "not a dict with no keys"),
        ([1, 2, 3], "an item is a mapping with image and target, or a pair of them, not list"),
        (KeyError("x"), "s7 cannot be loaded"),
    ],
)
def test_r506_for_invalid_items_of_a_custom_data_set(tmp_path: Path, item: Any, said: str) -> None:
    with pytest.raises(RuntimeFinding) as caught:
        passed(tmp_path, {7: item})
    assert caught.value.code == "R506"
    assert said in caught.value.render()
    loader, _ = passed(tmp_path, {7: item}, "skip")
    assert loader.skipped == {"s7"}


def test_pairs_and_numpy_arrays_are_accepted_as_items(tmp_path: Path) -> None:
    pair = (np.full((1, 4, 4), 2, np.float32), np.zeros((1, 4, 4), np.float32))
    _, batches = passed(tmp_path, dict.fromkeys(range(40), pair))
    assert batches[0].image.tolist() == [[[[2.0] * 4] * 4]] * 2
    assert batches[0].target.tolist() == [[[[0.0] * 4] * 4]] * 2


def test_r535_names_samples_of_different_shapes(tmp_path: Path) -> None:
    wide = {"image": torch.ones(1, 4, 8), "target": torch.ones(1, 4, 8)}
    with pytest.raises(RuntimeFinding) as caught:
        passed(tmp_path, {7: wide}, "skip")
    assert caught.value.code == "R535"
    assert "s7: image (1, 4, 8), target (1, 4, 8)" in caught.value.note


def test_r533_for_a_split_with_mostly_bad_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bad(number: int) -> dict[int, Any]:
        return dict.fromkeys(range(number), ValueError("bad"))

    loader, _ = passed(tmp_path, bad(4), "skip")
    assert loader.skipped == {"s0", "s1", "s2", "s3"}
    assert capsys.readouterr().err.count("of 40 samples of a split are bad and left out") == 1
    with pytest.raises(RuntimeFinding) as caught:
        passed(tmp_path, bad(5), "skip")
    assert caught.value.code == "R533"
    assert caught.value.message == "5 of 40 samples of a split are bad, more than 10%"
    write_data(tmp_path / "data", train=12, val=3)
    for name in ("train1", "train2"):
        (tmp_path / "data/images" / f"{name}.png").unlink()
    lock = lock_with(tmp_path, data__on_bad_sample="skip")
    with pytest.raises(RuntimeFinding, match="2 of 12 samples"):
        train_loader(open_split(lock, tmp_path / "data", "train"), lock, 0, collate)


def test_r532_ends_a_run_even_if_bad_samples_are_skipped(tmp_path: Path, data: Path) -> None:
    crop = [{"RandomCrop": {"size": 16}}]
    lock = lock_with(tmp_path, data__augmentations=crop, data__on_bad_sample="skip")
    loader = train_loader(open_split(lock, data, "train"), lock, 0, collate)
    with pytest.raises(RuntimeFinding) as caught:
        list(loader)
    assert caught.value.code == "R532"
    assert "sample train" in caught.value.note
    assert loader.skipped == set()


def test_masks_of_another_size_are_refused_only_if_they_differ(tmp_path: Path) -> None:
    """The image's size in pixels counts, not the size that both are resized to."""
    write_data(tmp_path / "data", size=48)
    lock = lock_with(tmp_path, data__image_size=[32, 24])
    item = open_split(lock, tmp_path / "data", "train")[0]
    assert item["image"].shape == item["target"].shape == (1, 32, 24)
    shutil.rmtree(tmp_path / "data")
    write_data(tmp_path / "data", size=48)
    splits = json.loads((tmp_path / "data/splits.json").read_text())
    assert open_split(lock, tmp_path / "data", "train").files(0)[0].stem == splits["train"][0]
