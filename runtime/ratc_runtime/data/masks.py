"""Masks of one class: their allowed values and their foreground.

Without a threshold a mask holds two values, the background's 0 and one of `WHITE`. Other values may mean a mask of
several classes, a picture, or an inverted mask. A guess could train on the wrong target, so such masks are refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ratc_runtime.errors import RuntimeFinding

#: The foreground's value: 1, or white in 8 or 16 bits.
WHITE = (1, 255, 65535)
#: A highest value up to which several whole numbers look like classes rather than greys.
_CLASSES = 50
#: Tolerance for whole numbers after scaling.
_ROUNDING = 1e-3
#: Values that a message lists.
_LISTED = 8
_PICTURE = "write the masks as 8-bit grey PNG of 0 (background) and 255 (foreground)"
_VOLUME = "write the masks as whole numbers, 0 (background) and 1 (foreground)"


def checked_threshold(threshold: Any, classes: int) -> float | None:
    """Return `mask_threshold` of a data set's arguments. Raises R509 if it is not a number, or of several classes."""
    if threshold is None:
        return None
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not threshold > 0:
        raise RuntimeFinding("R509", f"mask_threshold is {threshold!r:.40}, expected a number above 0")
    if classes > 1:
        raise RuntimeFinding(
            "R509",
            f"mask_threshold is for masks of one class, and data.num_classes is {classes}",
            help="remove it from data.args, or set `data.num_classes: 1`",
        )
    return threshold


def foreground(values: Any, path: Path, threshold: float | None) -> Any:
    """Return the foreground of a mask of one class as a bool array of the same shape.

    `values` is an array of numbers. With a `threshold`, values at least as large are foreground. Without one they must
    be 0 and one of `WHITE`. Raises R570, with the values found, if they are not, or if one is NaN or infinite.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _not_finite(values, path)
    if threshold is not None:
        return values >= threshold
    if values.dtype.kind == "b":
        return values
    if values.dtype.kind == "f":  # of a NIfTI file the values may have been scaled
        whole = np.rint(values)
        values = whole if np.abs(values - whole).max(initial=0) < _ROUNDING else values
    top = values.max(initial=0)
    found = values > 0
    if top in (0, *WHITE) and bool(((values == 0) | (values == top)).all()):
        return found
    raise _not_two(np.unique(values), path)


def numbers_of(picture: Image.Image, path: Path) -> Any:
    """Return the numbers (H, W) of a decoded mask of one class: greys, or the indices of a palette of two entries.

    Raises R570 if the mask has colours, or transparent pixels that may be its actual content.
    """
    if picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = _opaque(picture, path)
    if picture.mode == "P":
        return _indexed(picture, path)
    if len(picture.getbands()) == 1:
        return np.asarray(picture)
    pixels = np.asarray(picture.convert("RGB"))
    if bool((pixels[..., :1] == pixels).all()):
        return pixels[..., 0]
    raise _coloured(path, picture.mode, picture)


def _opaque(picture: Image.Image, path: Path) -> Image.Image:
    """Return a picture without its alpha channel. Raises R570 if a pixel is transparent."""
    alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    if bool((alpha == 255).all()):
        kept = picture.copy()
        kept.info.pop("transparency", None)
        if kept.mode in ("P", "L", "1", "RGB"):
            return kept
        return kept.convert("L" if kept.mode in ("LA", "La") else "RGB")
    seen = ", ".join(map(str, np.unique(alpha)[:_LISTED].tolist()))
    raise RuntimeFinding(
        "R570",
        f"{path} has an alpha channel, which may hold the foreground",
        f"values of the alpha channel: {seen}; {float((alpha > 0).mean()):.1%} of the pixels are not transparent",
        f"{_PICTURE}, without an alpha channel;"
        ' from the alpha channel: Image.open(path).getchannel("A").point(lambda v: 255 * (v >= 128))',
        everywhere=False,
    )


def _indexed(picture: Image.Image, path: Path) -> Any:
    """Return the numbers of a picture with a palette: the greys of a grey one, else the indices 0 (black) and 1.

    Raises R570 for other palettes.
    """
    indices = np.asarray(picture)
    palette = np.asarray(picture.getpalette("RGB") or [0, 0, 0], dtype=np.uint8).reshape(-1, 3)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=1))
    colours = palette[used[used < len(palette)]]
    if bool((colours == colours[:, :1]).all()):
        return np.asarray(picture.convert("L"))
    if not set(used.tolist()) - {0, 1} and not palette[0].any():
        return indices
    raise _coloured(path, "palette", picture)


def _coloured(path: Path, mode: str, picture: Image.Image) -> RuntimeFinding:
    colours = picture.convert("RGB").getcolors(1 << 16) or []
    listed = ", ".join(str(colour) for _, colour in sorted(colours, reverse=True)[:_LISTED])
    several = f"{len(colours)} colours: {listed}" if colours else "more than 65,536 colours"
    more = ", …" if len(colours) > _LISTED else ""
    return RuntimeFinding(
        "R570",
        f"{path} holds colours ({mode}), and data.num_classes is 1",
        f"{several}{more}",
        f"{_PICTURE}; if each colour is a class, write class numbers from 0 and set data.num_classes",
        everywhere=False,
    )


def _not_two(values: Any, path: Path) -> RuntimeFinding:
    """Return R570 for a mask with other values than 0 and one of `WHITE`. `values` are in ascending order."""
    listed = ", ".join(f"{value:g}" for value in values[:_LISTED].tolist())
    more = f", … {values[-1]:g}" if len(values) > _LISTED else ""
    positive = [value for value in values.tolist() if value > 0]
    classes = [value for value in positive if value != 255 or len(positive) == 1]
    whole = bool((values == np.rint(values)).all()) and values[0] >= 0
    helps = []
    if whole and classes and classes[-1] <= _CLASSES:
        ignored = ", data.ignore_index: 255" if 255 in positive else ""
        helps.append(f"if the values are classes: data.num_classes: {int(classes[-1]) + 1}{ignored}")
    middle = (float(values[0]) + float(values[-1])) / 2
    if middle > 0:
        helps.append(
            "if every value from some number on is foreground, as with smoothed edges:"
            f" data.args: {{mask_threshold: {math.ceil(middle) if whole else middle:g}}}"
        )
    helps.append(f"{'or ' if helps else ''}{_written(path)}, and resize them with nearest neighbours only")
    return RuntimeFinding(
        "R570",
        f"{path} is not a mask of one class: it holds {len(values)} different value{'s' if len(values) != 1 else ''}",
        f"values: {listed}{more}; expected 0 for the background and 1, 255 or 65535 for the foreground",
        "\n".join(helps),
        everywhere=False,
    )


def _not_finite(values: Any, path: Path) -> RuntimeFinding:
    """Return R570 for a mask with NaN or infinity, which is neither background nor foreground."""
    count = int((~np.isfinite(values)).sum())
    return RuntimeFinding(
        "R570",
        f"{path} is not a mask of one class: it holds NaN or infinity",
        f"{count} of {values.size} values are not finite",
        f"{_written(path)}; pixels without a label are background, or with data.num_classes: 2 have data.ignore_index",
        everywhere=False,
    )


def _written(path: Path) -> str:
    return _VOLUME if path.name.lower().endswith((".nii", ".nii.gz")) else f"{_PICTURE}, never as JPEG"
