"""Pictures of files as tensors, decoded and resized in one way for every 2D data set and for prediction."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from ratc_runtime.data.folders import SKIP_HELP
from ratc_runtime.errors import RuntimeFinding

#: The allowed formats, by Pillow's names, for any file name. Of the others one (EPS) starts a program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
#: Pillow's modes of more than 8 bits a channel: its conversion to grey cuts values off at 255.
WIDE_MODES = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")
#: Modes whose pixels are single whole numbers: grey, indices of a palette, black and white, 16 and 32 bits.
INDEX_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")
#: The least ratio of a reduced JPEG's size to the wanted size.
REDUCING_GAP = 2
#: The transposition that makes a picture upright, by the EXIF tag for the camera's orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: The orientations that exchange width and height.
_SIDEWAYS = (5, 6, 7, 8)


def sizes_of(image_size: tuple[int, int], scales: Sequence[float]) -> list[tuple[int, int]]:
    """Return height and width of an image at each scale."""
    height, width = image_size
    return [(max(1, round(height * scale)), max(1, round(width * scale))) for scale in scales]


class Header(NamedTuple):
    """The header of a picture: upright width and height, Pillow's mode, the EXIF orientation (1: upright).

    Of a volume: depth, height and width, and the number of channels. `transparent` is True if a pixel is at least
    partly transparent: pictures are read without their alpha channel.
    """

    size: tuple[int, ...]
    mode: str
    orientation: int
    transparent: bool = False

    def __str__(self) -> str:
        """Return the size as text, with the orientation if it was applied."""
        said = " x ".join(map(str, self.size))
        return said if self.orientation == 1 else f"{said} (upright, by its EXIF orientation {self.orientation})"


def open_picture(
    path: Path, mode: str | None, wanted: tuple[int, int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Return a decoded picture, upright, and the upright width and height in its file.

    The EXIF orientation is applied, as in viewers. Without a mode the pixels stay unchanged. A JPEG much larger than
    the `wanted` height and width is decoded at 1/2, 1/4 or 1/8 of its size, with at least twice the wanted size, in a
    fraction of the time, as in Pillow's `thumbnail`. Raises R506 if the file cannot be decoded, has several frames, or
    is of another format than `FORMATS`.
    """
    try:
        with _opened(path) as file:
            if _halved(file):  # checked first: Pillow decodes a PNG's pixels to find EXIF
                raise ValueError(
                    "it has 16 bits a channel in several channels, of which only the upper 8 would be read"
                )
            header = _header(file)
            if mode is None:
                file.load()
                kept: Image.Image = file.copy()
            else:
                if file.mode in WIDE_MODES:
                    said = f"it has more than 8 bits a channel (mode {file.mode}), which would be cut off at 255"
                    raise ValueError(said)
                if wanted is not None:
                    height, width = wanted if header.orientation not in _SIDEWAYS else wanted[::-1]
                    file.draft(mode, (REDUCING_GAP * width, REDUCING_GAP * height))
                kept = file.convert(mode)
            # Of a TIFF Pillow itself does this when it loads the pixels.
            turn = _TURNS.get(header.orientation) if file.format != "TIFF" else None
            kept = kept if turn is None else kept.transpose(turn)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, DecompressionBomb...
        raise undecodable(path, error) from None
    return kept, (header.size[0], header.size[1])


def open_numbers(path: Path) -> tuple[Any, tuple[int, int]]:
    """Return a mask of class numbers as an array (H, W), upright, and its width and height.

    Raises the errors of `open_picture`, and R536 if the pixels are not single whole numbers.
    """
    kept, size = open_picture(path, None)
    if kept.mode not in INDEX_MODES:
        holds = "fractions" if kept.mode == "F" else f"several channels ({kept.mode})"
        raise RuntimeFinding(
            "R536",
            f"{path} holds {holds}, not class numbers",
            "with data.num_classes a mask is grey or has a palette, and its numbers are the classes",
            "write the masks as 8-bit grey or palette PNG",
            everywhere=False,
        )
    return np.asarray(kept), size


def look_at(path: Path) -> Header:
    """Return the header of a picture. Raises R506 if it cannot be read. Only a picture with alpha is decoded."""
    try:
        with _opened(path) as file:
            return _header(file)._replace(transparent=_is_transparent(file))
    except Exception as error:  # see `open_picture`
        raise undecodable(path, error) from None


def undecodable(path: Path, error: Exception) -> RuntimeFinding:
    """Return R506: a file cannot be decoded."""
    said = " ".join(str(error).split())[:300]
    return RuntimeFinding(
        "R506", f"{path} cannot be decoded", f"{type(error).__name__}: {said}", SKIP_HELP, everywhere=False
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a picture without decoding it."""
    # A named pipe would be waited for, and a device may never end; a folder is refused by the system itself.
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError("it is not a regular file")
    # Given a name, Pillow maps some TIFFs into memory, and with an orientation gets their rows wrong.
    with path.open("rb") as stream:
        try:
            file = Image.open(stream, "r", FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"its content is none of {', '.join(FORMATS)}") from None
        # The second picture of a phone's MPO is a preview or the other eye's.
        if file.format != "MPO" and getattr(file, "is_animated", False):
            raise ValueError("it has several frames or pages, and only the first would be read")
        yield file


def _header(file: Any) -> Header:
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF says nothing, and the pixels may be whole
        orientation = 1
    orientation = orientation if orientation in _TURNS else 1
    width, height = file.size
    # Pillow has the size of a TIFF upright from the start.
    swapped = orientation in _SIDEWAYS and file.format != "TIFF"
    return Header((height, width) if swapped else (width, height), file.mode, orientation)


def _is_transparent(file: Any) -> bool:
    """Return whether any pixel of an opened picture is at least partly transparent."""
    if not file.has_transparency_data or _halved(file):
        return False
    return bool(file.convert("RGBA").getchannel("A").getextrema()[0] < 255)


def _halved(file: Any) -> bool:
    """Return whether Pillow would keep one byte of each 16-bit number of a file, as it has no such colour modes."""
    return file.mode not in WIDE_MODES and any(";16" in str(tile.args) for tile in file.tile)


def pyramid(picture: Image.Image, sizes: Sequence[tuple[int, int]]) -> torch.Tensor | list[torch.Tensor]:
    """Return a decoded picture at each (height, width), float (C, H, W) in [0, 1]; one tensor if there is one size."""
    # From the original each time: a pyramid made step by step would blur twice.
    levels = [
        torch.from_numpy(np.array(picture.resize((w, h), Image.Resampling.BILINEAR), dtype=np.float32) / 255)
        for h, w in sizes
    ]
    levels = [level.permute(2, 0, 1).contiguous() if level.dim() == 3 else level[None] for level in levels]
    return levels if len(levels) > 1 else levels[0]


def pixels(picture: Image.Image) -> torch.Tensor:
    """Return a decoded grey or RGB picture as uint8 (C, H, W)."""
    values = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return values[None] if values.dim() == 2 else values.permute(2, 0, 1).contiguous()
