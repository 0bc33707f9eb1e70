"""The ISIC 2018 layout: `images/NAME.jpg|.png`, `masks/NAME_segmentation.png`, `splits.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ratc_runtime.data.folders import SKIP_HELP, class_numbers, find_files
from ratc_runtime.data.masks import checked_threshold, foreground, numbers_of
from ratc_runtime.data.pictures import Header, look_at, open_numbers, open_picture, pixels, pyramid, sizes_of
from ratc_runtime.errors import RuntimeFinding

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")


class IsicSegmentation(torch.utils.data.Dataset[dict[str, Any]]):
    """Images and masks of one split, resized to one size.

    An item has `image`, float (C, H, W) in [0, 1] (a list from fine to coarse if `scales` has several entries),
    `target` and `name`. With one foreground class the target is float (1, H, W) of 0 and 1: see
    `ratc_runtime.data.masks` for the allowed masks, and for `mask_threshold`. With more it is (H, W), uint8: the
    numbers in the grey or palette mask are classes from 0, the background, to `num_classes` - 1, or `ignore_index`.

    Raises R506 with the file's name if the folder, `splits.json`, an image or a mask is missing or corrupt, R536 for a
    mask with other numbers, R570 for one that is not a mask of one class. With `skip_missing`, names without both files
    are left out and listed in `missing`.
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
        mask_threshold: float | None = None,
    ) -> None:
        self.image_size = image_size
        self.threshold = checked_threshold(mask_threshold, num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.mode = {1: "L", 3: "RGB"}.get(channels)
        if self.mode is None:
            raise RuntimeFinding("R506", f"the isic dataset has 1 or 3 channels, not {channels}")
        self.sizes = sizes_of(image_size, scales)
        files = find_files(Path(data_dir), split, IMAGE_SUFFIXES, (".png",), skip_missing)
        self.names, self.missing = [name for name, _, _ in files.found], files.missing
        self._files = [(image, mask) for _, image, mask in files.found]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture, numbers = self._pair(index, max(self.sizes))
        return {
            "image": pyramid(picture, self.sizes),
            "target": self._target(numbers, self._files[index][1], self.image_size),
            "name": self.names[index],
        }

    def whole(self, index: int) -> dict[str, Any]:
        """Return image and target of one sample in the size of their files: uint8 (C, H, W), and the target as in an
        item.
        """
        picture, numbers = self._pair(index, None)
        size = (picture.size[1], picture.size[0])
        return {"image": pixels(picture), "target": self._target(numbers, self._files[index][1], size)}

    def _pair(self, index: int, wanted: tuple[int, int] | None) -> tuple[Image.Image, Any]:
        """Return the decoded picture, which may be reduced to the `wanted` size at least, and the mask's numbers."""
        image_path, mask_path = self._files[index]
        picture, size = open_picture(image_path, self.mode or "L", wanted)
        numbers, mask_size = self._numbers(mask_path)
        if mask_size != size:
            raise RuntimeFinding(
                "R506",
                f"{mask_path} has {look_at(mask_path)} pixels, its image {look_at(image_path)}",
                f"the image is {image_path}; resized to one size they would not match",
                SKIP_HELP,
                everywhere=False,
            )
        return picture, numbers

    def files(self, index: int) -> tuple[Path, Path]:
        """Return the source files of one sample: image and mask."""
        return self._files[index]

    def header(self, index: int) -> Header:
        """Return size and mode of one sample's image without decoding it; raise R506 if it cannot be read."""
        return look_at(self._files[index][0])

    def target(self, index: int) -> torch.Tensor:
        """Return the target of one sample without decoding its image: (1, H, W) of 0 and 1, or class numbers (H, W)."""
        path = self._files[index][1]
        return self._target(self._numbers(path)[0], path, self.image_size)

    def _numbers(self, path: Path) -> tuple[Any, tuple[int, int]]:
        if self.num_classes > 1:
            return open_numbers(path)
        mask, size = open_picture(path, None)
        return numbers_of(mask, path), size

    def _target(self, numbers: Any, path: Path, size: tuple[int, int]) -> torch.Tensor:
        height, width = size
        if self.num_classes > 1:
            numbers = class_numbers(numbers, path, self.num_classes, self.ignore_index)
        else:
            numbers = foreground(numbers, path, self.threshold).astype(np.uint8)
        resized = np.array(Image.fromarray(numbers).resize((width, height), Image.Resampling.NEAREST))
        return torch.from_numpy(resized) if self.num_classes > 1 else torch.from_numpy(resized.astype(np.float32))[None]
