"""Predicted masks as files of the images' own sizes: PNG for pictures, NIfTI for volumes."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ratc_runtime.data.unlabelled import Piece
from ratc_runtime.data.volume_store import turned_back
from ratc_runtime.output.atomic import replacing

_COMPRESSED = ".nii.gz"


class MaskWriter:
    """Writes `NAME_segmentation.png`, or `.nii.gz`, the data sets' names of masks.

    With one foreground class a PNG is 255 if the probability is above `threshold`, else 0. Otherwise files hold class
    numbers. Logits of a picture are resized to the picture before a class is chosen. The patches of a volume are
    merged; the file has the affine and the axes of the image's.

    With `blended` the patches overlap: the logits of a voxel are the mean over its patches, weighted by a Gaussian of
    the place in each, and a class is chosen of that. They are kept for the whole volume, in 4 bytes for each class.
    """

    together = False

    def __init__(self, folder: Path, patch: tuple[int, ...], classes: int, threshold: float) -> None:
        self.folder, self._patch, self._classes = folder, patch, classes
        self._logit = math.log(threshold / (1 - threshold))
        self._volume: Any = None
        self._weights: Any = None
        self.blended = False

    def path_of(self, image: Path) -> Path:
        """Return the mask's file."""
        if len(self._patch) == 2:
            return self.folder / f"{image.stem}_segmentation.png"
        name = re.sub(r"\.nii(\.gz)?$", "", image.name, flags=re.IGNORECASE)
        return self.folder / f"{name}_segmentation{_COMPRESSED}"

    def add(self, piece: Piece, output: torch.Tensor) -> None:
        """Add logits (1, 1 or K, ...) of a piece. The mask is written with the last piece of its image."""
        if piece.corner is None:
            self._write_picture(piece, self._labels(output, piece.size))
            return
        if self.blended:
            self._blend(piece, output, piece.corner)
            return
        if self._volume is None:
            self._volume = np.zeros(piece.size, dtype=np.uint8)
        inside, source = _overlap(piece.corner, self._patch, piece.size)
        self._volume[inside] = self._labels(output, self._patch)[source]
        if piece.last:
            volume, self._volume = self._volume, None
            self._write_volume(piece, volume)

    def close(self) -> None:
        """Do nothing: every mask is already written."""

    def _blend(self, piece: Piece, output: torch.Tensor, corner: tuple[int, ...]) -> None:
        """Add weighted logits (1, 1 or K, D, H, W) of a patch, and write the volume with the last one."""
        if self._volume is None:
            self._volume = torch.zeros(output.shape[1], *piece.size)
            self._weights = torch.zeros(piece.size)
        inside, source = _overlap(corner, self._patch, piece.size)
        weight = gaussian(self._patch)[source]
        into, of = (slice(None), *inside), (slice(None), *source)
        self._volume[into] += _resized(output, self._patch)[0][of] * weight
        self._weights[inside] += weight
        if piece.last:
            logits, self._volume = self._volume / self._weights, None
            self._write_volume(piece, self._chosen(logits))

    def _labels(self, output: torch.Tensor, size: tuple[int, ...]) -> Any:
        return self._chosen(_resized(output, size)[0])

    def _chosen(self, logits: torch.Tensor) -> Any:
        """Return the class of each pixel by its logits (1 or K, ...)."""
        chosen = logits[0] > self._logit if self._classes == 1 else logits.argmax(0)
        return chosen.to(torch.uint8).numpy()

    def _write_picture(self, piece: Piece, labels: Any) -> None:
        path = self.path_of(piece.path)
        with replacing(path) as work:
            Image.fromarray(labels * 255 if self._classes == 1 else labels).save(work, format="PNG")

    def _write_volume(self, piece: Piece, labels: Any) -> None:
        import nibabel

        path = self.path_of(piece.path)
        with replacing(path) as work:
            nibabel.save(nibabel.Nifti1Image(turned_back(labels, piece.affine), piece.affine), work)


def _resized(output: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Return logits (1, K, ...) of another size."""
    if tuple(output.shape[2:]) == tuple(size):
        return output
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(output, size=size, mode=mode, align_corners=False)


def _overlap(
    corner: tuple[int, ...], patch: tuple[int, ...], whole: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the part of a volume that a patch covers, and the same part of the patch."""
    inside, source = [], []
    for first, side, length in zip(corner, patch, whole, strict=True):
        low, high = max(0, first), min(length, first + side)
        inside.append(slice(low, high))
        source.append(slice(low - first, high - first))
    return tuple(inside), tuple(source)


@cache
def gaussian(patch: tuple[int, ...]) -> torch.Tensor:
    """Return the weight of each voxel of a patch, of its size: 1 in the middle, with a standard deviation of an eighth
    of each side, and 0.001 at least (as MONAI's `sliding_window_inference` with `mode="gaussian"`).
    """
    weight = torch.ones(())
    for side in patch:
        place = torch.arange(side) - (side - 1) / 2
        weight = weight[..., None] * torch.exp(-(place**2) / (2 * (side / 8) ** 2))
    return weight.clamp(min=1e-3)
