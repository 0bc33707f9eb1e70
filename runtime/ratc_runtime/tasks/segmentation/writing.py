"""Predicted masks as files of the images' own sizes: PNG for pictures, NIfTI for volumes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ratc_runtime.data.unlabelled import Piece
from ratc_runtime.data.volume_store import to_file_orientation
from ratc_runtime.output.atomic import replacing
from ratc_runtime.tasks.segmentation.sliding import overlapping, resized

_COMPRESSED = ".nii.gz"


class MaskWriter:
    """Writes `NAME_segmentation.png`, or `.nii.gz`, the data sets' names of masks.

    With one foreground class a PNG is 255 if the probability is above `threshold`, else 0. Otherwise files hold class
    numbers. Logits of a picture are resized to the picture before a class is chosen. The patches of a volume are
    merged; the file has the affine and the axes of the image's.
    """

    together = False

    def __init__(self, folder: Path, patch: tuple[int, ...], classes: int, threshold: float) -> None:
        self.folder, self._patch, self._classes = folder, patch, classes
        self._logit = math.log(threshold / (1 - threshold))
        self._volume: Any = None

    def path_of(self, image: Path) -> Path:
        """Return the mask's file."""
        if len(self._patch) == 2:
            return self.folder / f"{image.stem}_segmentation.png"
        name = re.sub(r"\.nii(\.gz)?$", "", image.name, flags=re.IGNORECASE)
        return self.folder / f"{name}_segmentation{_COMPRESSED}"

    def add(self, piece: Piece, output: torch.Tensor) -> None:
        """Add logits (1, 1 or K, ...) of a whole image or of a patch. A mask is written with the last patch."""
        if piece.corner is None:
            labels = self._labels(output, piece.size)
            if len(self._patch) == 2:
                self._write_picture(piece, labels)
            else:
                self._write_volume(piece, labels)
            return
        if self._volume is None:
            self._volume = np.zeros(piece.size, dtype=np.uint8)
        inside, source = overlapping(piece.corner, self._patch, piece.size)
        self._volume[inside] = self._labels(output, self._patch)[source]
        if piece.last:
            volume, self._volume = self._volume, None
            self._write_volume(piece, volume)

    def close(self) -> None:
        """Do nothing: every mask is already written."""

    def _labels(self, output: torch.Tensor, size: tuple[int, ...]) -> Any:
        """Return the class of each pixel of an image of that size by logits (1, 1 or K, ...)."""
        logits = resized(output, size)[0]
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
            nibabel.save(nibabel.Nifti1Image(to_file_orientation(labels, piece.affine), piece.affine), work)
