"""Pictures of files as tensors, for every 2D data set and for prediction: decoded and resized in one way only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ratc_runtime.data.folders import SKIP_HELP
from ratc_runtime.errors import RuntimeFinding

#: Pillow's modes of more than 8 bits a channel: its conversion to grey cuts values off at 255.
WIDE_MODES = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")
#: Modes whose pixels are single whole numbers: grey, indices of a palette, black and white, 16 and 32 bits.
INDEX_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")
#: From how many times the wanted size on a JPEG is decoded to less than its own.
REDUCING_GAP = 2


def open_picture(
    path: Path, mode: str | None, wanted: tuple[int, int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
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


def pyramid(picture: Image.Image, sizes: Sequence[tuple[int, int]]) -> torch.Tensor | list[torch.Tensor]:
    """Return a decoded picture at each (height, width), float (C, H, W) in [0, 1]; bare where there is one size."""
    # From the original each time: a pyramid made step by step would blur twice.
    levels = [
        torch.from_numpy(np.array(picture.resize((w, h), Image.Resampling.BILINEAR), dtype=np.float32) / 255)
        for h, w in sizes
    ]
    levels = [level.permute(2, 0, 1).contiguous() if level.dim() == 3 else level[None] for level in levels]
    return levels if len(levels) > 1 else levels[0]
