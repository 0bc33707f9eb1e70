"""The pictures of segmentation: image, truth and prediction side by side; of a volume its three middle slices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from ratc_runtime.data.near import drawn
from ratc_runtime.output.atomic import replacing
from ratc_runtime.tasks.segmentation.picture import Picture

Colour = tuple[float, float, float]
# Distinguishable with red-green colour blindness: blue, orange, magenta, yellow.
AGREED, EXTRA, MISSED = (0.12, 0.47, 0.71), (1.0, 0.62, 0.0), (0.90, 0.10, 0.55)
CONFUSED = (0.95, 0.90, 0.25)
#: Of several classes: the palette of Okabe and Ito (2008) without black, made for the same people.
PALETTE: tuple[Colour, ...] = (
    (0.00, 0.45, 0.70),
    (0.90, 0.62, 0.00),
    (0.00, 0.62, 0.45),
    (0.80, 0.47, 0.65),
    (0.34, 0.71, 0.91),
    (0.84, 0.37, 0.00),
    (0.95, 0.90, 0.25),
)
DPI = 100
# The anatomy stays visible below agreeing pixels; errors are few and thin, and have to stand out.
OPACITY, ERROR_OPACITY = 0.45, 0.95
PLANES = ("middle of the first axis", "middle of the second axis", "middle of the third axis")


def draw_overlays(folder: Path, pictures: list[Picture]) -> list[Path]:
    """Draw one PNG per picture: image, truth, prediction, and both over the image; return the files."""
    if folder.is_symlink():
        folder.unlink()  # the target of a link does not belong to this run
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    return [_draw_overlay(folder, picture) for picture in pictures]


def draw_samples(path: Path, samples: Sequence[tuple[str, Any, Any]], names: Sequence[str]) -> None:
    """Draw name, image (C, H, W) or (C, D, H, W) and labels of each sample in a row, into one PNG.

    Of a volume the slice with the largest foreground is drawn.
    """
    kinds = colours(len(names))
    figure, axes = plt.subplots(
        len(samples), 2, figsize=(7, 3.4 * len(samples) + 0.6), layout="constrained", squeeze=False
    )
    for places, (name, image, labels) in zip(axes, samples, strict=True):
        title = drawn(name)
        if labels.ndim == 3:
            depth = int((labels > 0).sum((1, 2)).argmax())
            image, labels, title = image[:, depth], labels[depth], f"{title}, slice {depth}"
        rgb = image if image.shape[0] == 3 else np.repeat(image[:1], 3, axis=0)
        base = np.ascontiguousarray(np.moveaxis(rgb, 0, 2))
        share = f"{(labels > 0).mean():.1%} foreground"
        for axis, said, content in ((places[0], title, base), (places[1], share, _classes(base, labels, kinds))):
            axis.imshow(np.clip(content, 0, 1), interpolation="nearest")
            axis.set_title(said, fontsize=9)
            axis.set_axis_off()
    handles = [Patch(facecolor=colour, label=drawn(label)) for colour, label in zip(kinds, names, strict=True)]
    figure.legend(handles=handles[:24], loc="outside lower right", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI, format="png")
    plt.close(figure)


def colours(count: int) -> list[Colour]:
    """Return a colour for each foreground class: the palette, and beyond it steps of a map even in lightness."""
    if count == 1:
        return [AGREED]
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    steps = matplotlib.colormaps["cividis"](np.linspace(0, 1, count))
    return [(float(red), float(green), float(blue)) for red, green, blue, _ in steps]


def slices(array: Any) -> list[Any]:
    """Return the three middle planes of an array (..., D, H, W).

    The first axis is drawn upwards, as scanners number slices from below.
    """
    depth, height, width = (side // 2 for side in array.shape[-3:])
    return [array[..., depth, :, :], array[..., ::-1, height, :], array[..., ::-1, :, width]]


def _draw_overlay(folder: Path, picture: Picture) -> Path:
    image, truth, prediction = picture.image.numpy(), picture.truth.numpy(), picture.prediction.numpy()
    whole = truth.ndim == 2
    rows = list(zip(*([part] if whole else slices(part) for part in (image, truth, prediction)), strict=True))
    kinds = colours(len(picture.names))
    heights = [row[1].shape[0] / row[1].shape[1] for row in rows]
    inches = min(8.0, max(3.4, truth.shape[-1] / DPI)) if whole else 2.6
    size = (4 * inches, inches * sum(heights) + 0.85 + 0.3 * len(rows))
    figure, axes = plt.subplots(
        len(rows), 4, figsize=size, layout="constrained", squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for number, ((scan, true, found), places) in enumerate(zip(rows, axes, strict=True)):
        for axis, (title, content) in zip(places, _panels(scan, true, found, kinds), strict=True):
            axis.imshow(np.clip(content, 0, 1), interpolation="nearest")
            axis.set_title(title if whole or title != "image" else PLANES[number], fontsize=12 if whole else 9)
            axis.set_axis_off()
    figure.legend(handles=_legend(picture.names, kinds), loc="outside lower right", ncols=4, frameon=False, fontsize=10)
    dice = "no foreground" if math.isnan(picture.dice) else f"Dice {picture.dice:.3f}"
    figure.suptitle(f"{drawn(picture.name)}     {dice}", fontsize=13)
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', picture.name)}.png"
    with replacing(path) as work:
        figure.savefig(work, dpi=DPI, format="png")
    plt.close(figure)
    return path


def _panels(image: Any, truth: Any, prediction: Any, kinds: Sequence[Colour]) -> list[tuple[str, Any]]:
    """Return the titles and contents, (H, W, 3), of one row."""
    rgb = image if image.shape[0] == 3 else np.repeat(image[:1], 3, axis=0)
    base = np.ascontiguousarray(np.moveaxis(rgb, 0, 2))
    true, found = truth > 0, prediction > 0
    errors = _tinted(base, true & found & (truth == prediction), AGREED, OPACITY)
    errors = _tinted(errors, true & found & (truth != prediction), CONFUSED, ERROR_OPACITY)
    errors = _tinted(errors, ~true & found, EXTRA, ERROR_OPACITY)
    errors = _tinted(errors, true & ~found, MISSED, ERROR_OPACITY)
    return [
        ("image", base),
        ("truth", _classes(base, truth, kinds)),
        ("prediction", _classes(base, prediction, kinds)),
        ("prediction against truth", errors),
    ]


def _classes(base: Any, labels: Any, kinds: Sequence[Colour]) -> Any:
    content = base
    for number, colour in enumerate(kinds, start=1):
        content = _tinted(content, labels == number, colour, OPACITY if len(kinds) == 1 else 0.6)
    return content


def _legend(names: Sequence[str], kinds: Sequence[Colour]) -> list[Patch]:
    several = len(names) > 1
    shown = list(zip(kinds, names, strict=True)) if several else []
    shown += [(AGREED, "in both"), (EXTRA, "predicted, not true"), (MISSED, "missed")]
    shown += [(CONFUSED, "another class")] if several else []
    return [Patch(facecolor=colour, label=drawn(name)) for colour, name in shown]


def _tinted(base: Any, mask: Any, colour: Colour, opacity: float) -> Any:
    """Return the image (H, W, 3) with a colour laid over it where the mask is true."""
    content = base.copy()
    content[mask] = (1 - opacity) * base[mask] + opacity * np.asarray(colour)
    return content
