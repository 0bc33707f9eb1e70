"""The ISIC 2018 layout: `images/NAME.jpg|.png`, `masks/NAME_segmentation.png`, `splits.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ratc_runtime.data.folders import SKIP_HELP, class_numbers, find_files
from ratc_runtime.data.pictures import open_picture, pyramid
from ratc_runtime.errors import RuntimeFinding

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")


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
        picture, (width, height) = open_picture(image_path, self.mode or "L", max(self.sizes))
        mask, size = self._open_mask(mask_path)
        if size != (width, height):
            raise RuntimeFinding(
                "R506",
                f"{mask_path} has {size[0]} x {size[1]} pixels, its image {width} x {height}",
                f"the image is {image_path}; resized to one size they would not lie on one another",
                SKIP_HELP,
                everywhere=False,
            )
        return {
            "image": pyramid(picture, self.sizes),
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
        return open_picture(path, "L" if self.num_classes == 1 else None)

    def _target(self, mask: Image.Image, path: Path) -> torch.Tensor:
        height, width = self.image_size
        if self.num_classes > 1:
            numbers = class_numbers(np.asarray(mask), path, self.num_classes, self.ignore_index)
            resized = Image.fromarray(numbers).resize((width, height), Image.Resampling.NEAREST)
            return torch.from_numpy(np.array(resized))
        resized = mask.resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy((np.asarray(resized) >= 128).astype(np.float32))[None]
