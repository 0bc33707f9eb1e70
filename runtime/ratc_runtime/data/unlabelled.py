"""Images without labels, prepared as in training, as input of a prediction.

A picture is one piece. A volume gives one piece per patch of its grid, in order; the last one is marked. If they are
wanted whole, each is one piece in the resolution of its file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ratc_runtime.config.lock import Lock
from ratc_runtime.data import labelled
from ratc_runtime.data.isic import IMAGE_SUFFIXES
from ratc_runtime.data.near import shown
from ratc_runtime.data.pictures import open_picture, pixels, pyramid, sizes_of
from ratc_runtime.data.sources import BUILT_IN
from ratc_runtime.data.volume_store import Recipe, checked_fill, decode_image
from ratc_runtime.data.volumes import SUFFIXES, corners
from ratc_runtime.data.whole import patch
from ratc_runtime.errors import RuntimeFinding, warn


@dataclass(frozen=True)
class Piece:
    """One input of the model: `image` as in a data set of that kind, without a batch dimension.

    `size` is that of the whole image in its file, (H, W), or of the reoriented volume, (D, H, W). `corner` is the
    patch's position in it; `affine` is the volume's. With a `problem` there is no image.
    """

    path: Path
    image: Any = None
    size: tuple[int, ...] = ()
    corner: tuple[int, ...] | None = None
    affine: Any = None
    last: bool = True
    problem: RuntimeFinding | None = None


def suffixes(lock: Lock) -> tuple[str, ...]:
    """Return the suffixes of the image files of a lock's data set."""
    if lock.spatial_dims == 3:
        return SUFFIXES
    return labelled.SUFFIXES if lock.task_type == "classification" else IMAGE_SUFFIXES


def find_images(place: Path, lock: Lock) -> list[Path]:
    """Return the images of a folder by name, or `place` itself if it is a file. Raises R506 if there are none.

    Warns of the other files of the folder, except hidden ones.
    """
    known = suffixes(lock)
    if place.is_file():
        return [place]
    try:
        names = sorted(entry.name for entry in place.iterdir() if entry.is_file() and not entry.name.startswith("."))
    except OSError as error:
        raise RuntimeFinding("R506", f"{place} cannot be read", error.strerror or str(error)) from None
    found = [place / name for name in names if name.lower().endswith(known)]
    if not found:
        inside = any(entry.is_dir() for entry in place.iterdir())
        hint = "images in folders below it are not read: name one of these" if inside else ""
        raise RuntimeFinding("R506", f"{place} has no images", f"names end in {', '.join(known)}", hint)
    others = [name for name in names if not name.lower().endswith(known)]
    if others:
        warn(
            f"{len(others)} of {len(names)} files in {shown(str(place))} are left out, {shown(others[0])} for one:"
            f" names of images end in {', '.join(known)}"
        )
    return found


def pieces(paths: Sequence[Path], lock: Lock, whole: bool = False) -> Iterator[Piece]:
    """Yield the pieces of the images in order. An unreadable image gives a piece with a problem. If `whole`, an image
    is one piece: uint8 (C, H, W), or float (C, D, H, W), in the resolution of its file.

    Raises R542 if the lock's data set is the user's own: its preparation of images is unknown.
    """
    if lock.data.dataset not in BUILT_IN:
        raise RuntimeFinding(
            "R542",
            f"images cannot be prepared in the way of the data set {lock.data.dataset}",
            "the data set is your own code, which reads images and targets together",
            "predict a split of its data: --split test\n"
            "or write the loop yourself: ratc_runtime.inference.open_checkpoint returns the model, and"
            " engine.predict(image) its output",
        )
    if lock.spatial_dims == 3:
        return _patches(paths, lock, whole)
    loader: DataLoader[Piece] = DataLoader(
        _Pictures(paths, lock, whole), batch_size=None, num_workers=lock.data.num_workers, collate_fn=_as_it_is
    )
    return iter(loader)


def _as_it_is(piece: Any) -> Any:
    """Return a piece unchanged. Without batches a loader calls this with one sample, not with a list."""
    return piece


class _Pictures(Dataset[Piece]):
    def __init__(self, paths: Sequence[Path], lock: Lock, whole: bool) -> None:
        self.paths, self.whole = list(paths), whole
        height, width = lock.data.image_size
        self.sizes = sizes_of((height, width), lock.data.scales)
        self.mode = "L" if lock.data.channels == 1 else "RGB"
        # A JPEG is decoded to less than its own size exactly where training did that.
        self.wanted = max(self.sizes) if lock.data.dataset != "coco" and not whole else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Piece:
        path = self.paths[index]
        try:
            picture, (width, height) = open_picture(path, self.mode, self.wanted)
        except RuntimeFinding as finding:
            return Piece(path, problem=finding)
        if self.whole:
            return Piece(path, pixels(picture), (height, width))
        try:
            return Piece(path, pyramid(picture, self.sizes), (height, width))
        except (MemoryError, OverflowError, ValueError) as error:  # the sizes come from a checkpoint's lock
            note = f"{type(error).__name__}: {error}"[:300]
            return Piece(path, problem=RuntimeFinding("R506", f"{path} cannot be resized to {self.sizes}", note))


def _patches(paths: Sequence[Path], lock: Lock, whole: bool) -> Iterator[Piece]:
    """Yield the patches volume by volume, or the volumes, with one decoded volume in memory."""
    size = tuple(lock.data.image_size)
    window, fill = lock.data.args.get("window"), checked_fill(lock.data.args.get("fill_nan"))
    recipe = Recipe(lock.data.channels, lock.data.num_classes, None, tuple(window) if window else None, fill_nan=fill)
    for path in paths:
        try:
            voxels, affine = decode_image(path, recipe)
        except RuntimeFinding as finding:
            yield Piece(path, problem=finding)
            continue
        image, shape = torch.from_numpy(voxels), voxels.shape[-3:]
        if whole:
            yield Piece(path, image, shape, affine=affine)
            continue
        grid = corners(shape, size, 0.0)
        for number, corner in enumerate(grid, 1):
            yield Piece(path, patch(image, corner, lock), shape, corner, affine, last=number == len(grid))
