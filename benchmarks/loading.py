"""What the loaders cost: samples a second beside a bare torch DataLoader and beside decoding alone, and the stall of a
step of 20 ms: `python benchmarks/loading.py`.

Smooth photographs with grain, and their masks, are made in a temporary folder; every way of loading sees the same
files, and they take turns, so that a machine's moods meet all of them. A stall is time in which a training step that
itself takes 20 ms (it sleeps, as a CPU does that waits for its GPU) waits for its batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT)]

from ratc_runtime.config.lock import read_lock  # noqa: E402
from ratc_runtime.data.cache import open_cache, wrap  # noqa: E402
from ratc_runtime.data.loading import Loader, train_loader  # noqa: E402
from ratc_runtime.data.sources import open_split  # noqa: E402
from ratc_runtime.distributed.world import World  # noqa: E402

from tests.helpers.lockfile import write_lock  # noqa: E402

FLIPS = [{"RandomHorizontalFlip": {"p": 0.5}}, {"RandomVerticalFlip": {"p": 0.5}}]
MORE = [*FLIPS, {"RandomAffine": {"degrees": 20, "scale": [0.9, 1.1]}}, {"ColorJitter": {"brightness": 0.2}}]
STEP = 0.02


def write_data(folder: Path, number: int, size: tuple[int, int]) -> None:
    """Photographs of `size` (width, height) pixels and their masks, in the ISIC layout."""
    random = np.random.default_rng(0)
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    names = [f"s{index}" for index in range(number)]
    for name in names:
        small = random.integers(60, 200, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        photo = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        grain = random.integers(0, 12, (size[1], size[0], 1), dtype=np.uint8)
        Image.fromarray(np.asarray(photo) + grain).save(folder / "images" / f"{name}.jpg", quality=90)
        mask = np.zeros((size[1], size[0]), np.uint8)
        mask[size[1] // 4 : size[1] // 2, size[0] // 3 : size[0] // 2] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{name}_segmentation.png")
    splits = {"train": names, "val": names[:1], "test": names[1:2]}
    # One name in two splits is refused, as it should be.
    splits["train"] = names[2:]
    (folder / "splits.json").write_text(json.dumps(splits))


def lock(folder: Path, workers: int, pixels: int, batch: int, **changes: Any) -> Any:
    """A lock of one process that loads with so many workers."""
    return read_lock(
        write_lock(
            folder / "lock",
            data__num_workers=workers,
            data__persistent_workers=workers > 0,
            data__prefetch_factor=2 if workers else None,
            data__image_size=[pixels, pixels],
            data__channels=3,
            training__micro_batch_size=batch,
            training__global_batch_size=batch,
            training__gradient_accumulation_steps=1,
            **changes,
        )
    )


class Ways:
    """The ways of loading that are compared, each a callable from an epoch to an iterator over its batches."""

    def __init__(self, folder: Path, workers: int, pixels: int, batch: int) -> None:
        self.folder, self.workers, self.pixels, self.batch = folder, workers, pixels, batch
        self.dataset = open_split(lock(folder, workers, pixels, batch), folder / "data", "train")
        self.loaders: list[Loader] = []
        self.ways: dict[str, Callable[[int], Iterator[Any]]] = {
            "Pillow alone, one process": self._decoded,
            "bare DataLoader": self._bare(),
            "ratc": self._ours(),
            "ratc, flips": self._ours(data__augmentations=FLIPS),
            "ratc, flips, affine, colour": self._ours(data__augmentations=MORE),
            "ratc, cache: memory": self._ours(data__cache="memory", data__cache_size_bytes=2**30),
            "ratc, cache: disk": self._ours(data__cache="disk", data__cache_size_bytes=2**30),
            "ratc, cache: memory, flips": self._ours(
                data__cache="memory", data__cache_size_bytes=2**30, data__augmentations=FLIPS
            ),
        }

    def _decoded(self, _: int) -> Iterator[Any]:
        for index in range(len(self.dataset)):
            image, mask = (Image.open(path) for path in self.dataset.files(index))
            size = (self.pixels, self.pixels)
            image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
            mask.convert("L").resize(size, Image.Resampling.NEAREST)
            if index % self.batch == self.batch - 1:
                yield None

    def _bare(self) -> Callable[[int], Iterator[Any]]:
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_size=self.batch,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )
        return lambda _: iter(loader)

    def _ours(self, **changes: Any) -> Callable[[int], Iterator[Any]]:
        made = lock(self.folder, self.workers, self.pixels, self.batch, **changes)
        datasets = {split: open_split(made, self.folder / "data", split) for split in ("train", "val", "test")}
        cache = open_cache(made, datasets, self.folder / "data", self.folder / "out", World(0, 1, torch.device("cpu")))
        datasets = wrap(cache, datasets, False)
        loader = train_loader(datasets["train"], made, 0, lambda targets: default_collate(list(targets)))

        self.loaders.append(loader)

        def batches(epoch: int) -> Iterator[Any]:
            loader.order.epoch = epoch
            return iter(loader)

        return batches

    def epoch(self, name: str, number: int, step: float) -> tuple[float, float]:
        """Return samples a second of one epoch, and the part of its time that steps waited for batches."""
        start = time.perf_counter()
        waited, count, last = 0.0, 0, start
        for _ in self.ways[name](number):
            waited += time.perf_counter() - last
            count += self.batch
            if step:
                time.sleep(step)
            last = time.perf_counter()
        seconds = time.perf_counter() - start
        return count / seconds, waited / seconds


def main() -> int:
    """Print the table and what it was measured with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=58, help="photographs to make")
    parser.add_argument("--photo", type=int, nargs=2, default=(1024, 768), help="their width and height in pixels")
    parser.add_argument("--pixels", type=int, default=256, help="side that they are resized to")
    parser.add_argument("--batch", type=int, default=8, help="samples in a micro-batch")
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    parser.add_argument("--rounds", type=int, default=3, help="counted epochs of each way, in turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder / "data", options.samples, tuple(options.photo))
        ways = Ways(folder, options.workers, options.pixels, options.batch)
        rates: dict[str, list[float]] = {name: [] for name in ways.ways}
        stalls: dict[str, list[float]] = {name: [] for name in ways.ways}
        for turn in range(options.rounds + 1):  # the first starts processes and fills caches, and is not counted
            for name in ways.ways:
                rate, _ = ways.epoch(name, turn, 0)
                _, stall = ways.epoch(name, turn, STEP)
                if turn:
                    rates[name].append(rate)
                    stalls[name].append(stall)
        for loader in ways.loaders:
            loader.close()
    alone, bare = (statistics.median(rates[name]) for name in list(rates)[:2])
    print("| way | samples/s | x Pillow alone | x bare DataLoader | stall of 20 ms steps |")
    print("| --- | --- | --- | --- | --- |")
    for name, found in rates.items():
        middle = statistics.median(found)
        stall = statistics.median(stalls[name])
        print(f"| {name} | {middle:.0f} | {middle / alone:.2f} | {middle / bare:.2f} | {stall:.0%} |")
    print(
        f"\n{options.samples} photographs of {options.photo[0]} x {options.photo[1]}, resized to {options.pixels},"
        f" batches of {options.batch}, {options.workers} loader process(es); medians of {options.rounds} epochs;"
        f" {os.cpu_count()} cores, torch {torch.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
