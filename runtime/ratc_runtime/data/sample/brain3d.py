"""Blocks of the MNI152 brain template with their grey and white matter, as NIfTI volumes for the `volumes` dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ratc_runtime.data.sample import mni152
from ratc_runtime.data.sample.folder import SampleData, write_json

# Coronal slabs in voxels of 1 mm from the back, first and one past the last; six millimetres lie between any two. Not
# hemispheres: the template is symmetric, so the left one would reveal the right one.
SLABS = (
    ("train", 24, 56),
    ("val", 62, 94),
    ("train", 100, 132),
    ("test", 138, 170),
    ("train", 176, 208),
)
# The brain's extent to the sides and upwards, in voxels, rounded up to whole patches of 32.
SIDES, HEIGHT = (18, 178), (0, 160)
SOURCE = "nilearn: MNI152 symmetric 2009a T1, grey and white matter, 1 mm"


def make(folder: Path) -> None:
    """Write the blocks: 8-bit T1 of 160 x 32 x 160 voxels (right, anterior, superior) of 1 mm, and masks of classes.

    A voxel belongs to the matter whose map is at least half there. No voxel belongs to both.
    """
    import nibabel
    import numpy as np

    scan, affine = mni152.read("T1")
    grey, white = (mni152.read(name)[0] >= 128 for name in ("grey matter", "white matter"))
    classes = np.where(white, 2, np.where(grey, 1, 0)).astype(np.uint8)
    for sub in ("images", "masks"):
        (folder / sub).mkdir()

    def save(volume: Any, first: int, end: int, path: Path) -> None:
        block = np.ascontiguousarray(volume[SIDES[0] : SIDES[1], first:end, HEIGHT[0] : HEIGHT[1]]).astype(np.uint8)
        moved = affine.copy()
        moved[:3, 3] = affine[:3, :3] @ (SIDES[0], first, HEIGHT[0]) + affine[:3, 3]
        nibabel.save(nibabel.Nifti1Image(block, moved), path)

    for _, first, end in SLABS:
        save(scan, first, end, folder / _image(first))
        save(classes, first, end, folder / _mask(first))
    write_json(folder / "splits.json", splits())


def splits() -> dict[str, list[str]]:
    """Return the names of each split's volumes."""
    return {split: [_name(first) for kind, first, _ in SLABS if kind == split] for split in ("train", "val", "test")}


def _name(first: int) -> str:
    return f"mni152_y{first:03d}"


def _image(first: int) -> str:
    return f"images/{_name(first)}.nii.gz"


def _mask(first: int) -> str:
    return f"masks/{_name(first)}_segmentation.nii.gz"


SAMPLE = SampleData(
    summary="blocks of the MNI152 T1 template with masks of grey and white matter, NIfTI volumes",
    marker={"sample_data": "brain3d", "source": SOURCE, "slabs": [list(slab) for slab in SLABS]},
    counts={split: len(names) for split, names in splits().items()},
    files=("splits.json", *(name(first) for _, first, _ in SLABS for name in (_image, _mask))),
    make=make,
)
