"""Data sources by name, and their construction from the lock.

A data source is a callable `(data_dir, split, **arguments)` that returns a map-style dataset. Its items are mappings:
`image`, a float tensor (C, H, W) or (C, D, H, W) or, for a pyramid, a list of them from fine to coarse; `target`, for
segmentation of one foreground class a float tensor (1, ...) of 0 and 1, of several classes one of class numbers (...),
for detection a mapping (`ratc_runtime.data.coco`), for classification a class number; and optionally `name`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.class_folders import ClassFolders
from ratc_runtime.data.class_table import ClassTable
from ratc_runtime.data.coco import CocoDetection
from ratc_runtime.data.isic import IsicSegmentation
from ratc_runtime.data.volumes import VolumePatches
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.import_callable import build, call


@dataclass(frozen=True)
class BuiltIn:
    """A built-in data set: its class, the dimensions of its images, and the keys of the lock's `data` that it takes.

    The first of a sample's `files` is its image. `takes` leaves out the keys that every data set takes, and the data
    set's own `args`.
    """

    made: type[Any]
    dims: int = 2
    takes: tuple[str, ...] = ()


BUILT_IN: dict[str, BuiltIn] = {
    "isic": BuiltIn(IsicSegmentation, takes=("ignore_index",)),
    "volumes": BuiltIn(VolumePatches, dims=3, takes=("ignore_index",)),
    "coco": BuiltIn(CocoDetection),
    "folders": BuiltIn(ClassFolders),
    "csv": BuiltIn(ClassTable),
}


def open_split(lock: Lock, data_dir: Path, split: str) -> Any:
    """Build the dataset of one split (train, val or test).

    Raises R506 if the dataset finds another layout in the folder, R509 if a named callable cannot be imported or
    called.
    """
    if lock.data.dataset in BUILT_IN:
        known = BUILT_IN[lock.data.dataset]
        if lock.spatial_dims != known.dims:
            raise RuntimeFinding(
                "R509",
                f"dataset {lock.data.dataset} is {known.dims}D, the lock's data.image_size is {lock.data.image_size}",
                help="compile the spec again",
            )
        return call(
            "dataset",
            lock.data.dataset,
            known.made,
            lock.data.args,
            data_dir=data_dir,
            split=split,
            image_size=tuple(lock.data.image_size),
            channels=lock.data.channels,
            scales=tuple(lock.data.scales),
            skip_missing=lock.data.on_bad_sample == "skip",
            num_classes=lock.data.num_classes,
            **{key: getattr(lock.data, key) for key in known.takes},
        )
    dataset = build("dataset", lock.data.dataset, lock.data.args, data_dir=data_dir, split=split)
    for method in ("__len__", "__getitem__"):
        if not hasattr(dataset, method):
            raise RuntimeFinding(
                "R509", f"dataset {lock.data.dataset} returned {type(dataset).__name__}, which has no {method}"
            )
    return dataset
