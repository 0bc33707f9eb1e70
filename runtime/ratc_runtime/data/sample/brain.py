"""Axial slices of the MNI152 brain template with their white matter as the mask, in the ISIC 2018 layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ratc_runtime.data.sample import mni152
from ratc_runtime.data.sample.folder import SampleData, write_json

# Axial positions in voxels of 1 mm, first and one past the last. Neighbouring slices look alike, so the splits
# are bands, and six millimetres lie between the nearest slices of any two: no slice of val or test has a
# neighbour in train.
BANDS = (
    ("train", 34, 58),
    ("val", 63, 71),
    ("train", 76, 92),
    ("test", 97, 107),
    ("train", 112, 124),
    ("val", 129, 133),
    ("train", 138, 142),
)
SOURCE = "nilearn: MNI152 symmetric 2009a T1 and white matter, 1 mm"
SIZE = 192  # the brain is 185 mm long, the volume around it 233


def splits() -> dict[str, list[int]]:
    """Return the axial positions (mm from the volume's first slice) of each split."""
    positions: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for split, first, end in BANDS:
        positions[split] += range(first, end)
    return positions


def make(folder: Path) -> None:
    """Write the slices: 8-bit grey PNG of 192 x 192 pixels of 1 mm, the patient's front at the top, radiological side
    (the patient's right on the left). Masks are 0 and 255: white matter is a value of its map of at least half.
    """
    import numpy as np
    from PIL import Image

    scan, matter = mni152.read("T1")[0], mni152.read("white matter")[0]
    for sub in ("images", "masks"):
        (folder / sub).mkdir()

    def save(plane: Any, path: Path) -> None:
        # Voxels are right-anterior-superior: rows become front to back, columns the patient's right to left.
        turned = np.ascontiguousarray(plane.T[::-1, ::-1])
        top, left = (turned.shape[0] - SIZE) // 2, (turned.shape[1] - SIZE) // 2
        cut = np.ascontiguousarray(turned[top : top + SIZE, left : left + SIZE])
        Image.fromarray(cut).save(path, optimize=False)

    for positions in splits().values():
        for z in positions:
            save(scan[:, :, z].astype(np.uint8), folder / _image(z))
            mask = np.where(matter[:, :, z] >= 128, 255, 0).astype(np.uint8)
            save(mask, folder / _mask(z))
    write_json(folder / "splits.json", {split: [_name(z) for z in found] for split, found in splits().items()})


def _name(z: int) -> str:
    return f"mni152_z{z:03d}"


def _image(z: int) -> str:
    return f"images/{_name(z)}.png"


def _mask(z: int) -> str:
    return f"masks/{_name(z)}_segmentation.png"


SAMPLE = SampleData(
    summary="axial slices of the MNI152 T1 template with masks of its white matter, in the ISIC 2018 layout",
    marker={"sample_data": "brain", "source": SOURCE, "bands": [list(band) for band in BANDS]},
    counts={split: len(positions) for split, positions in splits().items()},
    files=("splits.json", *(name(z) for found in splits().values() for z in found for name in (_image, _mask))),
    make=make,
)
