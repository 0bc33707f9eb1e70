"""Whole images in the resolution of their files, and their patches, which have the size of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.pictures import pyramid
from ratc_runtime.data.samples import name_of
from ratc_runtime.data.volumes import averaged, cut
from ratc_runtime.errors import RuntimeFinding


class WholeImages(torch.utils.data.Dataset[dict[str, Any]]):
    """The images of a split, each once and whole, of a data set of resized pictures or of patches of volumes.

    An item has `image`, uint8 (C, H, W) or float (C, D, H, W) in [0, 1]; `target`, of the image's size; and `name`.
    Raises R542 if the data set has no such images.
    """

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "whole") or not hasattr(dataset, "files"):
            raise RuntimeFinding(
                "R542",
                "only images of the built-in data sets of segmentation are scored whole",
                help="leave --overlap out",
            )
        self.dataset = dataset
        first: dict[Any, int] = {}
        for index in range(len(dataset)):
            first.setdefault(dataset.files(index)[0], index)
        self._indices = list(first.values())
        # Behind an `@` stands the place of a patch.
        self.names = [name_of(dataset, index).rpartition("@")[0] or name_of(dataset, index) for index in self._indices]
        self.missing = list(getattr(dataset, "missing", ()))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset.whole(self._indices[index]), "name": self.names[index]}


def patch(image: torch.Tensor, corner: tuple[int, ...], lock: Lock) -> Any:
    """Return the patch of a whole image (C, ...) as training has it: a tensor (C, ...) of the lock's size in [0, 1], or
    a list with one for each of the lock's scales.

    `corner` is the first pixel of the patch on each axis. Outside of the image the patch is 0.
    """
    size = tuple(lock.data.image_size)
    sizes = [tuple(max(1, round(side * scale)) for side in size) for scale in lock.data.scales]
    values = cut(image.numpy(), corner, size)
    if len(size) == 2:
        channels = np.moveaxis(values, 0, -1)
        picture = Image.fromarray(channels[..., 0] if channels.shape[-1] == 1 else np.ascontiguousarray(channels))
        return pyramid(picture, sizes)  # type: ignore[arg-type]
    finest = torch.from_numpy(values)
    levels = [finest if level == size else averaged(finest, level) for level in sizes]
    return levels if len(levels) > 1 else levels[0]
