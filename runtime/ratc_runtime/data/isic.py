"""The ISIC 2018 layout: `images/NAME.jpg|.png`, `masks/NAME_segmentation.png`, `splits.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ratc_runtime.errors import RuntimeFinding

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")
#: Pillow's modes of more than 8 bits a channel: its conversion to grey cuts values off at 255.
WIDE_MODES = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")
#: From how many times the wanted size on a JPEG is decoded to less than its own.
REDUCING_GAP = 2
SKIP_HELP = "repair or remove it, or set `data.on_bad_sample: skip` in the spec and compile again"


class IsicSegmentation(torch.utils.data.Dataset[dict[str, Any]]):
    """Images and lesion masks of one split, resized to one size.

    An item has `image`, float (C, H, W) in [0, 1] (a list from fine to coarse when `scales` has several
    entries), `target`, float (1, H, W) of 0 and 1 (the mask at half its range), and `name`.

    Raises R506 naming the file where the folder, `splits.json`, an image or a mask is missing or corrupt.
    With `skip_missing`, names without both files are left out and listed in `missing`.
    """

    def __init__(
        self,
        data_dir: Path,
        split: str,
        image_size: tuple[int, int],
        channels: int = 3,
        scales: tuple[float, ...] = (1.0,),
        skip_missing: bool = False,
    ) -> None:
        self.image_size = image_size
        self.mode = {1: "L", 3: "RGB"}.get(channels)
        if self.mode is None:
            raise RuntimeFinding("R506", f"the isic dataset has 1 or 3 channels, not {channels}")
        self.sizes = [(max(1, round(image_size[0] * s)), max(1, round(image_size[1] * s))) for s in scales]
        self.data_dir = Path(data_dir)
        self.names: list[str] = []
        self.missing: list[str] = []
        self._files: list[tuple[Path, Path]] = []
        images = _listing(self.data_dir / "images", self.data_dir)
        masks = _listing(self.data_dir / "masks", self.data_dir)
        for name in _split_names(self.data_dir, split):
            image = next((name + suffix for suffix in IMAGE_SUFFIXES if name + suffix in images), None)
            mask = f"{name}_segmentation.png"
            if image is not None and mask in masks:
                self.names.append(name)
                self._files.append((self.data_dir / "images" / image, self.data_dir / "masks" / mask))
            elif skip_missing:
                self.missing.append(name)
            else:
                what = f"images/{name}.jpg or .png" if image is None else f"masks/{mask}"
                raise RuntimeFinding(
                    "R506", f"sample {name} of split {split} has no file {what}", str(self.data_dir), SKIP_HELP
                )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_path, mask_path = self._files[index]
        picture, (width, height) = _open(image_path, self.mode or "L", max(self.sizes))
        mask, size = _open(mask_path, "L")
        if size != (width, height):
            raise RuntimeFinding(
                "R506",
                f"{mask_path} has {size[0]} x {size[1]} pixels, its image {width} x {height}",
                f"the image is {image_path}; resized to one size they would not lie on one another",
                SKIP_HELP,
                everywhere=False,
            )
        # From the original each time: a pyramid made step by step would blur twice.
        levels = [
            torch.from_numpy(np.array(picture.resize((w, h), Image.Resampling.BILINEAR), dtype=np.float32) / 255)
            for h, w in self.sizes
        ]
        levels = [level.permute(2, 0, 1).contiguous() if level.dim() == 3 else level[None] for level in levels]
        return {
            "image": levels if len(levels) > 1 else levels[0],
            "target": self._target(mask),
            "name": self.names[index],
        }

    def files(self, index: int) -> tuple[Path, Path]:
        """Return the files that one sample is made from: image and mask."""
        return self._files[index]

    def target(self, index: int) -> torch.Tensor:
        """Return the target of one sample without decoding its image: float (1, H, W)."""
        return self._target(_open(self._files[index][1], "L")[0])

    def _target(self, mask: Image.Image) -> torch.Tensor:
        height, width = self.image_size
        resized = mask.resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy((np.asarray(resized) >= 128).astype(np.float32))[None]


def _listing(folder: Path, data_dir: Path) -> set[str]:
    try:
        # One listing instead of a stat per name: data sets lie on network file systems.
        return {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise RuntimeFinding(
            "R506",
            f"the data folder {data_dir} has no readable {folder.name}/",
            f"{folder}: {error.strerror or error}",
            "name the folder with --data-dir or RAT_DATA_DIR; `ratc sample-data brain DIR` writes a small one",
        ) from None


def _split_names(data_dir: Path, split: str) -> list[str]:
    path = data_dir / "splits.json"
    example = 'it is {"train": [names], "val": [names], "test": [names]}, names without suffix'
    try:
        splits = json.loads(path.read_bytes())
    except OSError as error:
        raise RuntimeFinding("R506", f"{path} cannot be read", error.strerror or str(error), example) from None
    except (ValueError, RecursionError) as error:
        raise RuntimeFinding("R506", f"{path} is not valid JSON", str(error), example) from None
    if not isinstance(splits, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()
    ):
        raise RuntimeFinding("R506", f"{path} is not a mapping from split to names", help=example)
    if split not in splits:
        raise RuntimeFinding("R506", f"{path} has no split {split!r}", f"found {', '.join(splits)}", example)
    names: list[str] = splits[split]
    for other, others in splits.items():
        shared = set(names) & set(others) if other != split else set()
        if shared:
            raise RuntimeFinding(
                "R506",
                f"{path} has {min(shared)} in both {split} and {other}",
                f"{len(shared)} name(s) in both: a score on them would be worthless",
            )
    if len(set(names)) != len(names):
        raise RuntimeFinding("R506", f"{path} names a sample twice in {split}")
    outside = [name for name in names if "/" in name or "\\" in name or name in ("", ".", "..")]
    if outside:
        raise RuntimeFinding("R506", f"{path} has {outside[0]!r:.80}, which is no plain name")
    return names


def _open(path: Path, mode: str, wanted: tuple[int, int] | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Return a decoded picture and the width and height that its file has.

    A JPEG of several times the `wanted` height and width is decoded to the next size of 1/2, 1/4 or 1/8 that has at
    least twice as much, in a fraction of the time; so does Pillow's `thumbnail`.
    """
    try:
        with Image.open(path) as file:
            size = file.size
            if file.mode in WIDE_MODES:
                raise ValueError(f"it has more than 8 bits a channel (mode {file.mode}), which would be cut off at 255")
            if wanted is not None:
                file.draft(mode, (REDUCING_GAP * wanted[1], REDUCING_GAP * wanted[0]))
            picture: Image.Image = file.convert(mode)
            return picture, size
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, DecompressionBomb...
        raise RuntimeFinding(
            "R506", f"{path} cannot be decoded", f"{type(error).__name__}: {error}", SKIP_HELP, everywhere=False
        ) from None
