"""The cache of decoded images: bit-identical samples, bounded, intact after a kill, never stale."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ratc_runtime.config.lock import Lock
from ratc_runtime.data import cache as caching
from ratc_runtime.data.cache import Cache, CachedSplit, open_cache, wrap
from ratc_runtime.data.loading import train_loader
from ratc_runtime.data.packing import pack, unpack
from ratc_runtime.data.shared_cache import SharedCache, remove_unused
from ratc_runtime.data.sources import open_split
from ratc_runtime.distributed.world import World
from torch.utils.data import default_collate

from tests.effort import examples
from tests.helpers.lockfile import lock_with, results, run_training, write_data, write_lock

ALONE = World(0, 1, torch.device("cpu"))
MIB = 2**20


def opened(lock: Lock, folder: Path, foreign: bool = False) -> tuple[Cache, dict[str, Any]]:
    """A cache over the three splits of the data in `folder`, as a run opens it."""
    datasets = {split: open_split(lock, folder / "data", split) for split in ("train", "val", "test")}
    cache = open_cache(lock, datasets, folder / "data", folder / "out", ALONE)
    return cache, wrap(cache, datasets, foreign)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        raw = [tensor.reshape(-1).view(torch.uint8) for tensor in (one, other) if tensor.numel()]
        return not raw or torch.equal(*raw)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def make(args: tuple[torch.dtype, list[int], int]) -> torch.Tensor:
        dtype, shape, seed = args
        bytes_ = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        kinds = (bytes_.float() / 255, (bytes_ > 127).float(), bytes_.float() / 3 - 40, -bytes_.float())
        return kinds[seed % 4] if dtype is torch.float32 else bytes_.to(dtype)

    dtypes = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool]
    return st.tuples(st.sampled_from(dtypes), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 400)).map(make)


trees = st.recursive(
    tensors() | st.none() | st.booleans() | st.integers(-5, 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=examples(80), deadline=None)
@given(trees, trees, st.text())
def test_a_packed_sample_is_unpacked_bit_for_bit(image: Any, target: Any, name: str) -> None:
    packed = pack(image, target, name)
    assert packed is not None
    back = unpack(memoryview(bytearray(packed)))
    assert equal(list(back), [image, target, name])


def test_eight_bit_images_take_one_byte_per_value() -> None:
    image, mask = torch.randint(0, 256, (3, 64, 64)).float() / 255, (torch.rand(1, 64, 64) > 0.5).float()
    packed = pack(image, mask, "a")
    assert packed is not None
    assert len(packed) < 4 * 64 * 64 + 600
    assert pack(object(), mask, "a") is None
    assert pack(image, {3: mask}, "a") is None
    assert pack(image, float("nan"), "a") is None


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_and_without_a_cache(tmp_path: Path, kind: str, workers: int) -> None:
    write_data(tmp_path / "data", train=20, size=40, mode="RGB")
    (tmp_path / "data/images/train4.png").write_bytes(b"no image")

    def epochs(cached: str) -> tuple[list[Any], Cache]:
        lock = lock_with(
            tmp_path / "lock",
            data__cache=cached,
            data__cache_size_bytes=None if cached == "none" else 64 * MIB,
            data__channels=3,
            data__image_size=[32, 24],
            data__scales=[1.0, 0.5],
            model__multi_scale=True,
            data__augmentations=[{"RandomAffine": {"degrees": 20}}, {"GaussianNoise": {"sigma": 0.1}}],
            data__on_bad_sample="skip",
            data__num_workers=workers,
            data__persistent_workers=workers > 0,
            data__prefetch_factor=2 if workers else None,
        )
        cache, datasets = opened(lock, tmp_path)
        loader = train_loader(datasets["train"], lock, 0, lambda targets: default_collate(list(targets)))
        found = []
        for epoch in range(3):
            loader.order.epoch = epoch
            found += [[batch.image, batch.target, batch.names, batch.skipped] for batch in loader]
        loader.close()
        return found, cache

    plain, _ = epochs("none")
    cached, cache = epochs(kind)
    assert equal(plain, cached)
    record = cache.record()
    assert record is not None
    assert record["samples"] == 19
    assert not record["full"]
    if kind == "disk":
        again, cache = epochs(kind)
        assert equal(plain, again)
        assert cache.shared is not None
        assert cache.shared.stored == 19, "the next start finds what the last one kept"


def test_a_full_cache_keeps_its_samples(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=12)
    lock = lock_with(tmp_path / "lock", data__cache="memory", data__cache_size_bytes=10_000)
    cache, datasets = opened(lock, tmp_path)
    bare = open_split(lock, tmp_path / "data", "train")
    for _ in range(2):
        assert all(equal(dict(datasets["train"][index]), dict(bare[index])) for index in range(12))
    record = cache.record()
    assert record is not None
    assert record["full"]
    assert 0 < record["samples"] < 12
    assert record["bytes"] <= record["limit_bytes"] == 10_000


class Counting:
    """A data set that counts how often it is asked."""

    names = tuple(f"s{index}" for index in range(6))

    def __init__(self, item: Any = None) -> None:
        self.asked, self.item = 0, item

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return self.item(index) if self.item else {"image": np.full((1, 2, 2), index, np.float32), "target": [index]}


def test_a_sample_is_decoded_once(tmp_path: Path) -> None:
    data = Counting()
    split = CachedSplit(data, SharedCache.in_memory(10, MIB), 4, True)
    for _ in range(3):
        assert [split[index]["image"].sum().item() for index in range(6)] == [4 * index for index in range(6)]
        assert split.target(3) == [3]
    assert data.asked == 6
    assert split.names[2] == "s2"
    assert not hasattr(split, "missing")


@pytest.mark.parametrize(
    ("item", "flag"),
    [
        (lambda index: {"image": torch.rand(1, 2, 2), "target": index}, caching.RANDOM),
        (lambda index: {"image": np.random.rand(1, 2, 2), "target": index}, caching.RANDOM),
        (lambda index: {"image": torch.ones(1, 2, 2) * random.random(), "target": index}, caching.RANDOM),
        (lambda index: {"image": torch.ones(1, 2, 2), "target": {index}}, caching.FOREIGN),
    ],
)
def test_samples_that_cannot_be_cached_are_reported(item: Any, flag: int) -> None:
    data, shared = Counting(item), SharedCache.in_memory(6, MIB)
    split = CachedSplit(data, shared, 0, True)
    assert not torch.equal(split[1]["image"], split[1]["image"]) or flag == caching.FOREIGN
    assert data.asked == 2
    assert len(list(Cache("memory", shared, "memory").warnings())) == 1
    assert shared.noted(flag)


def test_a_changed_file_or_setting_invalidates_the_cache(tmp_path: Path) -> None:
    splits = write_data(tmp_path / "data")
    lock = lock_with(tmp_path / "lock", data__cache="disk", data__cache_size_bytes=8 * MIB)
    folder = tmp_path / "out/cache"

    def first_image(lock: Lock) -> torch.Tensor:
        cache, datasets = opened(lock, tmp_path)
        found: torch.Tensor = datasets["train"][0]["image"]
        assert cache.shared is not None
        cache.shared.close()
        os.close(cache.shared.descriptor)
        return found

    before = first_image(lock)
    (kept,) = folder.iterdir()
    image = tmp_path / "data/images" / f"{splits['train'][0]}.png"
    other = tmp_path / "data/images" / f"{splits['train'][1]}.png"
    state = image.stat()
    image.write_bytes(other.read_bytes())
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert not torch.equal(first_image(lock), before)
    assert [path.name for path in folder.iterdir()] == [kept.name]
    smaller = lock_with(
        tmp_path / "lock2", data__cache="disk", data__cache_size_bytes=8 * MIB, data__image_size=[16, 16]
    )
    assert first_image(smaller).shape == (1, 16, 16)
    (new,) = folder.iterdir()
    assert new.name != kept.name, "what was made for other settings is removed"
    longer = {**splits, "train": splits["train"][::-1]}
    (tmp_path / "data/splits.json").write_text(json.dumps(longer))
    reversed_ = first_image(smaller)
    assert torch.equal(reversed_, open_split(smaller, tmp_path / "data", "train")[0]["image"])


def test_cache_files_of_a_running_run_are_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.ratc-cache"
    start = multiprocessing.get_context("fork")
    ready, done = start.Event(), start.Event()

    def hold() -> None:
        shared = SharedCache.on_disk(path, 3, MIB)
        ready.set()
        done.wait(30)
        shared.close()

    process = start.Process(target=hold)
    process.start()
    ready.wait(30)
    assert not remove_unused(path)
    done.set()
    process.join()
    assert remove_unused(path)
    assert not path.exists()


@pytest.mark.parametrize("damage", ["data", "record", "head", "short", "text"])
def test_a_damaged_cache_file_does_not_end_the_run(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.ratc-cache"
    shared = SharedCache.on_disk(path, 3, MIB)
    packed = pack(torch.arange(300.0), None, "a")
    assert packed is not None
    assert shared.store(1, b"s" * 16, packed)
    shared.close()
    os.close(shared.descriptor)
    raw = bytearray(path.read_bytes())
    spot = {"data": shared.start + 700, "record": 4096 + 64 + 3, "head": 3}.get(damage)
    if spot is not None:
        raw[spot] ^= 255
    path.write_bytes({"short": bytes(raw[:5000]), "text": b"something else"}.get(damage, bytes(raw)))
    again = SharedCache.on_disk(path, 3, MIB)
    assert again.read(1) is None
    assert again.store(1, b"t" * 16, packed)
    view = again.read(1)
    assert view is not None
    assert equal(unpack(view)[0], torch.arange(300.0))


def content(slot: int) -> bytes:
    packed = pack(torch.full((500 + 17 * slot,), slot / 7), [slot], f"sample {slot}")
    assert packed is not None
    return packed


def fill(shared: SharedCache, seed: int) -> None:
    order = random.Random(seed)
    while True:
        slot = order.randrange(shared.records)
        found = shared.read(slot)
        if found is not None and bytes(found) != content(slot):
            os._exit(3)
        if found is None or order.random() < 0.2:
            shared.store(slot, b"x" * 16, content(slot))


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_processes_killed_while_caching_leave_only_whole_samples(tmp_path: Path, place: str) -> None:
    records, limit = 60, 2 * MIB
    shared = (
        SharedCache.in_memory(records, limit)
        if place == "memory"
        else SharedCache.on_disk(tmp_path / "a", records, limit)
    )
    start = multiprocessing.get_context("fork")
    chosen = random.Random(0)
    for turn in range(6):
        processes = [start.Process(target=fill, args=(shared, 3 * turn + number)) for number in range(3)]
        for process in processes:
            process.start()
        time.sleep(chosen.uniform(0.01, 0.08))
        for process in processes:
            assert process.exitcode is None, "a process read what nobody wrote"
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        for slot in range(records):
            found = shared.read(slot)
            assert found is None or bytes(found) == content(slot)
    assert shared.stored > records // 2
    assert shared.used <= limit


def _other_process(shared: SharedCache, answer: Any) -> None:
    found = shared.read(0)
    answer.send(None if found is None else bytes(found))
    shared.store(1, b"x" * 16, content(1))
    answer.close()


def test_a_spawned_process_shares_the_cache_in_memory() -> None:
    """As a rank does, and as a loader process does where processes are not forks."""
    shared = SharedCache.in_memory(2, MIB)
    shared.store(0, b"x" * 16, content(0))
    start = multiprocessing.get_context("spawn")
    mine, theirs = start.Pipe()
    process = start.Process(target=_other_process, args=(shared, theirs))
    process.start()
    assert mine.recv() == content(0)
    process.join()
    found = shared.read(1)
    assert found is not None
    assert bytes(found) == content(1)


def test_a_cache_folder_that_cannot_be_used_gives_a_warning(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAT_CACHE_DIR", str(tmp_path / "file"))
    lock = lock_with(tmp_path / "lock", data__cache="disk", data__cache_size_bytes=MIB)
    cache, datasets = opened(lock, tmp_path)
    assert cache.record() is None
    assert datasets["train"][0]["image"].shape == (1, 32, 32)
    assert "warning: no cache of decoded images" in capsys.readouterr().err
    monkeypatch.setenv("RAT_CACHE_DIR", str(tmp_path / "elsewhere"))
    cache, datasets = opened(lock, tmp_path)
    assert datasets["train"][0]["image"].shape == (1, 32, 32)
    assert len(list((tmp_path / "elsewhere").glob("tiny-*.ratc-cache"))) == 1


def test_a_data_set_without_file_names_is_cached_again_by_each_start(tmp_path: Path) -> None:
    lock = lock_with(tmp_path / "lock", data__cache="disk", data__cache_size_bytes=MIB)
    keys = {caching._key(lock, {"train": Counting()}, tmp_path, False) for _ in range(2)}
    assert len(keys) == 2


@pytest.mark.slow
def test_a_run_has_the_same_results_with_and_without_a_cache(project: Path) -> None:
    def trained(out: str, **changes: Any) -> dict[str, Any]:
        lock = write_lock(
            project / f"compiled-{out}",
            output_dir=out,
            data__augmentations=[{"RandomHorizontalFlip": {"p": 0.5}}],
            **changes,
        )
        done = run_training(lock)
        assert done.returncode == 0, done.stderr
        return results(project / out)

    plain = trained("plain")
    cached = trained("cached", data__cache="memory", data__cache_size_bytes=MIB)
    assert plain["cache"] is None
    assert cached["cache"]["samples"] == 16
    for one, other in zip(plain["epochs"], cached["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert plain["test"] == cached["test"]
