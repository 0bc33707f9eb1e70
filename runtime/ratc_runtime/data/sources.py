"""Data sources by name, and their construction from the lock.

A data source is a callable `(data_dir, split, **arguments)` that returns a map-style dataset. Its items are mappings:
`image`, a float tensor (C, H, W) or (C, D, H, W) or, for a pyramid, a list of them from fine to coarse; `target`, for
segmentation of one foreground class a float tensor (1, ...) of 0 and 1, of several classes one of class numbers (...),
for detection a mapping (`ratc_runtime.data.coco`); and optionally `name`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.coco import CocoDetection
from ratc_runtime.data.isic import IsicSegmentation
from ratc_runtime.data.volumes import VolumePatches
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.import_callable import build, call

SPLITS = ("train", "val", "test")
#: The built-in data sets of segmentation: dimensions, and the class.
BUILT_IN: dict[str, tuple[int, Callable[..., Any]]] = {"isic": (2, IsicSegmentation), "volumes": (3, VolumePatches)}


def open_split(lock: Lock, data_dir: Path, split: str) -> Any:
    """Build the dataset of one split (train, val or test).

    Raises R506 if the dataset finds another layout in the folder, R509 if a named callable cannot be imported or
    called.
    """
    if lock.data.dataset in BUILT_IN:
        dims, made = BUILT_IN[lock.data.dataset]
        if lock.spatial_dims != dims:
            raise RuntimeFinding(
                "R509",
                f"dataset {lock.data.dataset} is {dims}D, the lock's data.image_size is {lock.data.image_size}",
                help="compile the spec again",
            )
        return call(
            "dataset",
            lock.data.dataset,
            made,
            data_dir=data_dir,
            split=split,
            image_size=tuple(lock.data.image_size),
            channels=lock.data.channels,
            scales=tuple(lock.data.scales),
            skip_missing=lock.data.on_bad_sample == "skip",
            num_classes=lock.data.num_classes,
            ignore_index=lock.data.ignore_index,
            **lock.data.args,
        )
    if lock.data.dataset == "coco":
        height, width = lock.data.image_size
        return CocoDetection(
            data_dir,
            split,
            image_size=(height, width),
            channels=lock.data.channels,
            scales=tuple(lock.data.scales),
            skip_missing=lock.data.on_bad_sample == "skip",
            num_classes=lock.data.num_classes,
            **lock.data.args,
        )
    dataset = build("dataset", lock.data.dataset, data_dir=data_dir, split=split, **lock.data.args)
    for method in ("__len__", "__getitem__"):
        if not hasattr(dataset, method):
            raise RuntimeFinding(
                "R509", f"dataset {lock.data.dataset} returned {type(dataset).__name__}, which has no {method}"
            )
    return dataset
