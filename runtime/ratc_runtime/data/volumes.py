"""NIfTI volumes: `images/NAME.nii.gz`, `masks/NAME_segmentation.nii.gz`, `splits.json`. A sample is a patch.

Every volume is cut into a fixed grid of patches, and each patch is a sample. So the patches of a step depend on the
loader's order alone, and are the same on any machine and after a restart. A volume is decoded once, and its patches are
read from a memory map (`VolumeStore`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ratc_runtime.data.folders import find_files
from ratc_runtime.data.masks import checked_threshold
from ratc_runtime.data.pictures import Header
from ratc_runtime.data.volume_store import Recipe, Volume, VolumeStore, checked_fill, look_at
from ratc_runtime.errors import RuntimeFinding

SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Patch:
    """One sample: the number of a volume, and the patch's first voxel in it, which may be outside of the volume."""

    volume: int
    corner: tuple[int, int, int]


class VolumePatches(torch.utils.data.Dataset[dict[str, Any]]):
    """Patches (D, H, W) of the volumes of one split, in the order of `splits.json` and of their corners.

    Axes are superior, anterior, right: volumes are reoriented to the nearest of these by their affine, and are not
    resampled. The grid covers a volume once, centred. Outside its border a patch is 0 and background, so over all
    patches every voxel counts once. With `overlap` (a share of the patch, below 1) the patches of the train split
    overlap; those of val and test never do.

    Intensities are clipped to `window` (low, high), or without one to the volume's 0.5th and 99.5th percentiles per
    channel, and scaled to [0, 1]. A volume with several channels has them in a fourth dimension. `fill_nan` stands for
    voxels that are NaN or infinite, in the file's units; without it they are refused.

    An item has `image`, float (C, D, H, W) in [0, 1] (a list from fine to coarse if `scales` has several entries, the
    coarser ones averaged from the patch), `target`, float (1, D, H, W) of 0 and 1 (of one foreground class: see
    `ratc_runtime.data.masks`, also for `mask_threshold`) or uint8 (D, H, W) of class numbers, and `name`, which ends
    with `@` and the corner.

    Raises R506 with the file's name if one is missing or corrupt, R536 for a mask with numbers that are not classes,
    R570 for one that is not a mask of one class, R537 if the voxels of image and mask do not match. With
    `skip_missing`, volumes without both files, or with an unusable header, are left out and listed in `missing`.
    """

    def __init__(
        self,
        data_dir: Path,
        split: str,
        image_size: tuple[int, int, int],
        channels: int = 1,
        scales: tuple[float, ...] = (1.0,),
        skip_missing: bool = False,
        num_classes: int = 1,
        ignore_index: int | None = None,
        window: tuple[float, float] | None = None,
        overlap: float = 0.0,
        mask_threshold: float | None = None,
        fill_nan: float | None = None,
    ) -> None:
        low, high = window or (0.0, 1.0)
        if not (all(isinstance(one, (int, float)) for one in (low, high)) and low < high and 0 <= overlap < 1):
            raise RuntimeFinding(
                "R506",
                f"the volumes cannot be cut: window {window}, overlap {overlap}",
                "a window is [low, high] with low below high, an overlap is a share from 0 to below 1",
            )
        self.patch_size, self.num_classes = tuple(image_size), num_classes
        self.sizes = [tuple(max(1, round(side * scale)) for side in image_size) for scale in scales]
        threshold = checked_threshold(mask_threshold, num_classes)
        recipe = Recipe(channels, num_classes, ignore_index, window, threshold, checked_fill(fill_nan))
        files = find_files(Path(data_dir), split, SUFFIXES, SUFFIXES, skip_missing)
        self.missing = list(files.missing)
        self.volumes: list[Volume] = []
        for name, image, mask in files.found:
            try:
                self.volumes.append(look_at(name, image, mask, recipe))
            except RuntimeFinding:
                if not skip_missing:
                    raise
                self.missing.append(name)
        step = overlap if split == "train" else 0.0
        self.patches = [
            Patch(number, corner)
            for number, volume in enumerate(self.volumes)
            for corner in corners(volume.shape, image_size, step)
        ]
        self.names = [f"{self.volumes[patch.volume].name}@{_spelled(patch.corner)}" for patch in self.patches]
        self._store = VolumeStore(recipe)

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        patch = self.patches[index]
        voxels, mask = self._store.read(self.volumes[patch.volume])
        image = torch.from_numpy(cut(voxels, patch.corner, self.patch_size))
        levels = [image if size == self.patch_size else averaged(image, size) for size in self.sizes]
        return {
            "image": levels if len(levels) > 1 else levels[0],
            "target": self._target(mask, patch),
            "name": self.names[index],
        }

    def header(self, index: int) -> Header:
        """Return the shape of the sample's volume, and the number of its channels."""
        channels = self._store.recipe.channels
        return Header(self.volumes[self.patches[index].volume].shape, str(channels), 1)

    def files(self, index: int) -> tuple[Path, Path]:
        """Return the source files of one sample: image and mask."""
        volume = self.volumes[self.patches[index].volume]
        return volume.image, volume.mask

    def target(self, index: int) -> torch.Tensor:
        """Return the target of one sample without its image: (1, D, H, W) of 0 and 1, or class numbers (D, H, W)."""
        patch = self.patches[index]
        return self._target(self._store.read(self.volumes[patch.volume])[1], patch)

    def whole(self, index: int) -> dict[str, Any]:
        """Return image and target of the whole volume of one sample: float (C, D, H, W), and the target as in an
        item.
        """
        voxels, mask = self._store.read(self.volumes[self.patches[index].volume])
        return {"image": torch.from_numpy(np.array(voxels)), "target": self._as_target(np.array(mask))}

    def _target(self, mask: Any, patch: Patch) -> torch.Tensor:
        return self._as_target(cut(mask, patch.corner, self.patch_size))

    def _as_target(self, mask: Any) -> torch.Tensor:
        target = torch.from_numpy(mask)
        return target.float()[None] if self.num_classes == 1 else target


def corners(shape: tuple[int, ...], size: tuple[int, ...], overlap: float) -> list[Any]:
    """Return the corners of a grid of patches that covers a volume, or a picture, centred on it."""
    along: list[list[int]] = []
    for length, side in zip(shape, size, strict=True):
        step = max(1, round(side * (1 - overlap)))
        count = 1 + max(0, -(-(length - side) // step))
        first = -(((count - 1) * step + side - length) // 2)
        along.append([first + step * number for number in range(count)])
    return list(itertools.product(*along))


def cut(array: Any, corner: tuple[int, ...], size: tuple[int, ...]) -> Any:
    """Return the patch of an array (..., D, H, W) or (..., H, W) as a copy, with 0 outside the array."""
    patch = np.zeros((*array.shape[: -len(size)], *size), dtype=array.dtype)
    inside: tuple[Any, ...] = (...,)
    source: tuple[Any, ...] = (...,)
    for first, side, length in zip(corner, size, array.shape[-len(size) :], strict=True):
        low, high = max(0, first), min(length, first + side)
        source += (slice(low, high),)
        inside += (slice(low - first, high - first),)
    patch[inside] = array[source]
    return patch


def averaged(image: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Return a patch (C, D, H, W) averaged to a coarser size."""
    coarse: torch.Tensor = F.adaptive_avg_pool3d(image[None], size)[0]  # type: ignore[arg-type]
    return coarse


def _spelled(corner: tuple[int, ...]) -> str:
    return ",".join(map(str, corner))
