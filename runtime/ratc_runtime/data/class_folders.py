"""Images by folder: `SPLIT/CLASS/NAME.png`, the layout of ImageNet and of torchvision's `ImageFolder`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ratc_runtime.data.folders import SPLITS
from ratc_runtime.data.labelled import SUFFIXES, Labelled, numbered
from ratc_runtime.data.near import shown
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.output.sizes import counted

LAYOUT = "train/CLASS/NAME.png, val/CLASS/NAME.png and test/CLASS/NAME.png"


class ClassFolders(Labelled):
    """The images of one split, in a folder for each class.

    A class is in all splits that have its folder; it has the same number in all of them (`labelled.numbered`). Raises
    R506 if a folder is missing, has no classes, or has folders among its images; R539 and R591 for other classes than
    the lock's.
    """

    def __init__(
        self,
        data_dir: Path,
        split: str,
        image_size: tuple[int, int],
        channels: int = 3,
        scales: tuple[float, ...] = (1.0,),
        skip_missing: bool = False,
        num_classes: int = 2,
        classes: Any = None,
    ) -> None:
        data_dir = Path(data_dir)
        known = {one: _folders(data_dir / one) for one in SPLITS if one == split or (data_dir / one).is_dir()}
        numbers, class_names = numbered(str(data_dir), set().union(*known.values()), num_classes, classes)
        files: list[Path] = []
        labels: list[int] = []
        others: list[str] = []
        for name in known[split]:
            found, left = _images(data_dir / split / name)
            files += found
            labels += [numbers[name]] * len(found)
            others += [f"{name}/{one}" for one in left]
        names = [f"{path.parent.name}/{path.name}" for path in files]
        super().__init__("folders", image_size, channels, scales, files, labels, names, class_names)
        if others and os.environ.get("RANK", "0") == "0":
            many = counted(len(others), "file")
            warn(
                f"left out of {shown(str(data_dir / split))}: {many}, {shown(others[0])} for one:"
                f" names of images end in {', '.join(SUFFIXES)}"
            )


def _folders(split: Path) -> list[str]:
    """Return the names of the classes' folders, hidden ones aside."""
    helps = (
        f"the layout is {LAYOUT}; name the folder with --data-dir or RAT_DATA_DIR; `ratc sample-data digits DIR` writes"
        " a small one"
    )
    try:
        with os.scandir(split) as entries:
            found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        note = f"{split}: {error.strerror or error}"
        raise RuntimeFinding(
            "R506", f"the data folder {split.parent} has no readable {split.name}/", note, helps
        ) from None
    if not found:
        raise RuntimeFinding("R506", f"{split} has no folder of a class", help=helps)
    return found


def _images(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the images of a class by name, and the names of other files, hidden ones aside."""
    found: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    raise RuntimeFinding(
                        "R506",
                        f"{folder} has the folder {shown(entry.name)} among its images",
                        help="move the images of a class directly into its folder; or list them in a CSV file, and "
                        "set `data.dataset: csv`",
                    )
                (found if entry.name.lower().endswith(SUFFIXES) else others).append(entry.name)
    except OSError as error:
        raise RuntimeFinding("R506", f"{folder} cannot be read", error.strerror or str(error)) from None
    return [folder / name for name in sorted(found)], sorted(others)
