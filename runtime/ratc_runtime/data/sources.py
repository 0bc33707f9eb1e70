"""Data sources by name, and how any of them is built from the lock.

A data source is a callable `(data_dir, split, **arguments)` that returns a map-style dataset. Its items are
mappings: `image`, a float tensor (C, H, W) or, for a pyramid, a list of them from fine to coarse; `target`, a
float tensor (1, H, W) of 0 and 1; and, if it has one, `name`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ratc_runtime.data.isic import IsicSegmentation
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.imports import build
from ratc_runtime.lock import Lock

SPLITS = ("train", "val", "test")


def open_split(lock: Lock, data_dir: Path, split: str) -> Any:
    """Build the dataset of one split (train, val or test).

    Raises R506 where the folder is not what the dataset expects, R509 where a named callable cannot be
    imported or called.
    """
    if lock.data.dataset == "isic":
        height, width = lock.data.image_size
        return IsicSegmentation(
            data_dir,
            split,
            image_size=(height, width),
            channels=lock.data.channels,
            scales=tuple(lock.data.scales),
            skip_missing=lock.data.on_bad_sample == "skip",
            **lock.data.args,
        )
    dataset = build("dataset", lock.data.dataset, data_dir=data_dir, split=split, **lock.data.args)
    for method in ("__len__", "__getitem__"):
        if not hasattr(dataset, method):
            raise RuntimeFinding(
                "R509", f"dataset {lock.data.dataset} returned {type(dataset).__name__}, which has no {method}"
            )
    return dataset
