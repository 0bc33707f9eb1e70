"""A check that a training split can fill a global batch, without importing torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ratc_runtime.config.lock import Lock
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.sizes import counted

#: Size limit in bytes of a list that preflight reads: parsing a larger one takes too long.
_MOST_BYTES = 8 << 20


def check_length(length: int, lock: Lock) -> None:
    """Raise R503 if a training split of `length` samples gives no optimizer step."""
    batch, keep = lock.training.global_batch_size, lock.training.last_batch == "keep"
    if length < (1 if keep else batch):
        raise RuntimeFinding(
            "R503",
            f"the train split has {counted(length, 'sample')}, fewer than one global batch of {batch}",
            "with `last_batch: drop` every optimizer step takes a full global batch" if not keep else "",
            "set a smaller training.target_batch_size, or `training.last_batch: keep`, or use more samples",
        )


def check_listed(lock: Lock, data_dir: Path) -> None:
    """Raise R503 if the training split listed in the files cannot fill a global batch.

    Only checks that take milliseconds are made: the lists of the data sets `isic` and `coco`. Other errors in the files
    are left to the run. Relative folders are relative to the working folder.
    """
    parts = [(lock.part(name), data_dir / part.data.folder) for name, part in (lock.tasks or {}).items()]
    lengths = [_listed(part, folder) for part, folder in parts or [(lock, data_dir)]]
    known = [length for length in lengths if length is not None]
    # The longest of several counts; an unknown one may be longer.
    if known and len(known) == len(lengths):
        check_length(max(known), lock)


def _listed(lock: Lock, folder: Path) -> int | None:
    """Return the largest possible number of training samples; None if unknown."""
    if lock.data.dataset == "isic":
        found = _read(folder / "splits.json")
        names = found.get("train") if isinstance(found, dict) else None
    elif lock.data.dataset == "coco":
        lists = (folder / "annotations" / f"instances_{name}.json" for name in ("train", "train2017", "train2014"))
        path = next((path for path in lists if path.is_file()), None)
        found = None if path is None else _read(path)
        names = found.get("images") if isinstance(found, dict) else None
    else:
        return None
    return len(names) if isinstance(names, list) else None


def _read(path: Path) -> Any:
    try:
        if not path.is_file() or os.stat(path).st_size > _MOST_BYTES:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
