"""The ISIC 2018 layout: `images/NAME.jpg|.png`, `masks/NAME_segmentation.png`, `splits.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ratc_runtime.data.folders import SKIP_HELP, class_numbers, find_files
from ratc_runtime.errors import RuntimeFinding

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")
#: Pillow's modes of more than 8 bits a channel: its conversion to grey cuts values off at 255.
WIDE_MODES = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")
#: Modes whose pixels are single whole numbers: grey, indices of a palette, black and white, 16 and 32 bits.
INDEX_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")
#: From how many times the wanted size on a JPEG is decoded to less than its own.
REDUCING_GAP = 2


class IsicSegmentation(torch.utils.data.Dataset[dict[str, Any]]):
    """Images and masks of one split, resized to one size.

    An item has `image`, float (C, H, W) in [0, 1] (a list from fine to coarse when `scales` has several
    entries), `target` and `name`. With one foreground class the target is float (1, H, W) of 0 and 1, the mask at half
    its range. With more it is (H, W), uint8: the numbers in the mask, whether it is grey or has a palette, are
    classes from 0, the background, to `num_classes` - 1, or `ignore_index`.

    Raises R506 naming the file where the folder, `splits.json`, an image or a mask is missing or corrupt, R536 for a
    mask that holds other numbers. With `skip_missing`, names without both files are left out and listed in `missing`.
    """

    def __init__(
        self,
        data_dir: Path,
        split: str,
        image_size: tuple[int, int],
        channels: int = 3,
        scales: tuple[float, ...] = (1.0,),
        skip_missing: bool = False,
        num_classes: int = 1,
        ignore_index: int | None = None,
    ) -> None:
        self.image_size = image_size
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.mode = {1: "L", 3: "RGB"}.get(channels)
        if self.mode is None:
            raise RuntimeFinding("R506", f"the isic dataset has 1 or 3 channels, not {channels}")
        self.sizes = [(max(1, round(image_size[0] * s)), max(1, round(image_size[1] * s))) for s in scales]
        files = find_files(Path(data_dir), split, IMAGE_SUFFIXES, (".png",), skip_missing)
        self.names, self.missing = [name for name, _, _ in files.found], files.missing
        self._files = [(image, mask) for _, image, mask in files.found]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_path, mask_path = self._files[index]
        picture, (width, height) = _open(image_path, self.mode or "L", max(self.sizes))
        mask, size = self._open_mask(mask_path)
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
            "target": self._target(mask, mask_path),
            "name": self.names[index],
        }

    def files(self, index: int) -> tuple[Path, Path]:
        """Return the files that one sample is made from: image and mask."""
        return self._files[index]

    def target(self, index: int) -> torch.Tensor:
        """Return the target of one sample without decoding its image."""
        path = self._files[index][1]
        return self._target(self._open_mask(path)[0], path)

    def _open_mask(self, path: Path) -> tuple[Image.Image, tuple[int, int]]:
        return _open(path, "L" if self.num_classes == 1 else None)

    def _target(self, mask: Image.Image, path: Path) -> torch.Tensor:
        height, width = self.image_size
        if self.num_classes > 1:
            numbers = class_numbers(np.asarray(mask), path, self.num_classes, self.ignore_index)
            resized = Image.fromarray(numbers).resize((width, height), Image.Resampling.NEAREST)
            return torch.from_numpy(np.array(resized))
        resized = mask.resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy((np.asarray(resized) >= 128).astype(np.float32))[None]


def _open(path: Path, mode: str | None, wanted: tuple[int, int] | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Return a decoded picture and the width and height that its file has.

    Without a mode it stays as it is, and must hold one whole number a pixel (R536). A JPEG of several times the
    `wanted` height and width is decoded to the next size of 1/2, 1/4 or 1/8 that has at least twice as much, in a
    fraction of the time; so does Pillow's `thumbnail`.
    """
    try:
        with Image.open(path) as file:
            size = file.size
            if mode is None:
                file.load()
                kept: Image.Image = file.copy()
            else:
                if file.mode in WIDE_MODES:
                    said = f"it has more than 8 bits a channel (mode {file.mode}), which would be cut off at 255"
                    raise ValueError(said)
                if wanted is not None:
                    file.draft(mode, (REDUCING_GAP * wanted[1], REDUCING_GAP * wanted[0]))
                kept = file.convert(mode)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, DecompressionBomb...
        raise RuntimeFinding(
            "R506", f"{path} cannot be decoded", f"{type(error).__name__}: {error}", SKIP_HELP, everywhere=False
        ) from None
    if mode is None and kept.mode not in INDEX_MODES:
        raise RuntimeFinding(
            "R536",
            f"{path} holds colours ({kept.mode}), not class numbers",
            "with data.num_classes a mask is grey or has a palette, and its numbers are the classes",
            "write the masks as 8-bit grey or palette PNG",
            everywhere=False,
        )
    return kept, size
