"""Writes the sample data: axial slices of the MNI152 brain template with their white matter as the mask.

The volumes are files inside the `nilearn` package, so nothing is downloaded. Run as
`python -m ratc_runtime.data.sample brain DIR`, which `ratc sample-data brain DIR` does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

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
VOLUMES = {
    "T1": "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "white matter": "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz",
}
# Written last: its presence says that the folder is complete.
MARKER = "sample-data.json"


class SampleDataError(Exception):
    """The sample data cannot be written; the message says why and what to do."""


def splits() -> dict[str, list[int]]:
    """Return the axial positions (mm from the volume's first slice) of each split."""
    positions: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for split, first, end in BANDS:
        positions[split] += range(first, end)
    return positions


def _volume(name: str) -> Any:
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise SampleDataError("the package nilearn is not installed; it is part of the runtime extra")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / VOLUMES[name]
    if not path.is_file():
        raise SampleDataError(f"this version of nilearn has no {path.name}; install nilearn 0.14")
    # Read with nibabel alone: importing nilearn takes seconds, and its loaders rescale.
    import nibabel
    import numpy as np

    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]


def _marker() -> dict[str, Any]:
    return {"sample_data": "brain", "source": SOURCE, "bands": [list(band) for band in BANDS]}


def is_complete(folder: Path) -> bool:
    """Tell whether `folder` already holds exactly this sample data."""
    try:
        if json.loads((folder / MARKER).read_bytes()) != _marker():
            return False
        names = [_name(z) for positions in splits().values() for z in positions]
        return all(
            (folder / "images" / f"{name}.png").is_file() and (folder / "masks" / f"{name}_segmentation.png").is_file()
            for name in names
        )
    except (OSError, ValueError):
        return False


def _name(z: int) -> str:
    return f"mni152_z{z:03d}"


def write_brain(folder: Path) -> bool:
    """Write the brain slices into `folder`; return False if they were already there.

    Slices are 8-bit grey PNG of 192 x 192 pixels of 1 mm, the patient's front at the top, radiological side
    (the patient's right on the left); masks are 0 and 255, white matter where its map is at least half. All or
    nothing: the files are made in a folder beside and renamed. Raises SampleDataError where the folder holds
    something else or cannot be written.
    """
    if is_complete(folder):
        return False
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SampleDataError(f"{folder} is not empty and not this sample data; name another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise SampleDataError(f"cannot write {folder}: {error.strerror or error}") from None
    try:
        _write_files(work)
        work.chmod(0o755)
        os.replace(work, folder)
    except OSError as error:
        raise SampleDataError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def _write_files(work: Path) -> None:
    import numpy as np
    from PIL import Image

    scan, matter = _volume("T1"), _volume("white matter")
    size = 192  # the brain is 185 mm long, the volume around it 233
    for sub in ("images", "masks"):
        (work / sub).mkdir()

    def save(plane: Any, path: Path) -> None:
        # Voxels are right-anterior-superior: rows become front to back, columns the patient's right to left.
        turned = np.ascontiguousarray(plane.T[::-1, ::-1])
        top, left = (turned.shape[0] - size) // 2, (turned.shape[1] - size) // 2
        cut = np.ascontiguousarray(turned[top : top + size, left : left + size])
        Image.fromarray(cut).save(path, optimize=False)

    named = {split: [_name(z) for z in positions] for split, positions in splits().items()}
    for positions in splits().values():
        for z in positions:
            save(scan[:, :, z].astype(np.uint8), work / "images" / f"{_name(z)}.png")
            mask = np.where(matter[:, :, z] >= 128, 255, 0).astype(np.uint8)
            save(mask, work / "masks" / f"{_name(z)}_segmentation.png")
    for file, content in (("splits.json", named), (MARKER, _marker())):
        (work / file).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Write the named sample data; return 0, or 1 where it cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime.data.sample",
        description="Write sample data in the ISIC 2018 layout: images/, masks/ and splits.json.",
        epilog="brain: axial slices of the MNI152 T1 template, masks of its white matter; nothing is downloaded.",
    )
    parser.add_argument("name", choices=["brain"], help="which sample data")
    parser.add_argument("folder", type=Path, help="the folder to write; it must be new, empty or already complete")
    arguments = parser.parse_args(argv)
    try:
        written = write_brain(arguments.folder)
    except SampleDataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = ", ".join(f"{len(positions)} {split}" for split, positions in splits().items())
    print(f"{arguments.folder}: {'written' if written else 'already complete'} ({counts})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
