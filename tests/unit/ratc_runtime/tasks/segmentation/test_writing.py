"""Masks from the outputs of patches."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import torch
from ratc_runtime.data.unlabelled import Piece
from ratc_runtime.data.volume_store import turned_back
from ratc_runtime.data.volumes import corners
from ratc_runtime.tasks.segmentation.writing import MaskWriter, gaussian


def test_overlapping_patches_are_blended_by_their_weights(tmp_path: Path) -> None:
    whole, patch, classes = (9, 12, 7), (6, 4, 8), 3
    writer = MaskWriter(tmp_path, patch, classes, 0.5)
    writer.blended = True
    generator = torch.Generator().manual_seed(0)
    total, weights = np.zeros((classes, *whole)), np.zeros(whole)
    grid = corners(whole, patch, 0.5)
    for number, corner in enumerate(grid, 1):
        logits = torch.randn(1, classes, *patch, generator=generator)
        affine = np.eye(4)
        writer.add(Piece(Path("scan.nii.gz"), None, whole, corner, affine, number == len(grid)), logits)
        for place in np.ndindex(*patch):
            at = tuple(first + step for first, step in zip(corner, place, strict=True))
            if all(0 <= index < length for index, length in zip(at, whole, strict=True)):
                weight = float(gaussian(patch)[place])
                total[(slice(None), *at)] += weight * logits[(0, slice(None), *place)].numpy()
                weights[at] += weight
    written = np.asarray(nibabel.load(tmp_path / "scan_segmentation.nii.gz").dataobj)
    assert (written == turned_back((total / weights).argmax(0), np.eye(4))).all()


def test_weights_fall_from_the_middle_to_the_borders() -> None:
    weight = gaussian((9, 9, 9))
    assert weight[4, 4, 4] == 1
    assert torch.equal(weight, weight.flip(0, 1, 2))
    assert weight[0, 0, 0] == weight.min() == torch.tensor(1e-3)
    assert weight[4, 4, 2] == torch.exp(torch.tensor(-(2**2) / (2 * (9 / 8) ** 2)))
