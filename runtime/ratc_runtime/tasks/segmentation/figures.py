"""The pictures of segmentation: image, truth and prediction side by side."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from ratc_runtime.tasks.segmentation.picture import Picture

# Told apart by people who see no red or green as well: blue, orange, magenta.
AGREED, EXTRA, MISSED = (0.12, 0.47, 0.71), (1.0, 0.62, 0.0), (0.90, 0.10, 0.55)
DPI = 100
# The anatomy stays visible below what is agreed on; errors are few and thin, and have to stand out.
OPACITY, ERROR_OPACITY = 0.45, 0.95


def draw_overlays(folder: Path, pictures: list[Picture]) -> list[Path]:
    """Draw one PNG per picture: image, truth, prediction, and both over the image; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    return [_draw_overlay(folder, picture) for picture in pictures]


def _draw_overlay(folder: Path, picture: Picture) -> Path:
    image = picture.image.permute(1, 2, 0).numpy()
    base = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    truth, prediction = picture.truth.numpy(), picture.prediction.numpy()
    errors = _tinted(base, truth & prediction, AGREED, OPACITY)
    errors = _tinted(errors, ~truth & prediction, EXTRA, ERROR_OPACITY)
    errors = _tinted(errors, truth & ~prediction, MISSED, ERROR_OPACITY)
    panels = (
        ("image", base),
        ("truth", _tinted(base, truth, AGREED, OPACITY)),
        ("prediction", _tinted(base, prediction, AGREED, OPACITY)),
        ("prediction against truth", errors),
    )
    height, width = base.shape[:2]
    inches = min(8.0, max(3.4, width / DPI))
    figure, axes = plt.subplots(1, 4, figsize=(4 * inches, inches * height / width + 0.85), layout="constrained")
    for axis, (title, content) in zip(axes, panels, strict=True):
        axis.imshow(np.clip(content, 0, 1), interpolation="nearest")
        axis.set_title(title, fontsize=12)
        axis.set_axis_off()
    names = ("in both", "predicted, not true", "missed")
    handles = [Patch(facecolor=colour, label=name) for colour, name in zip((AGREED, EXTRA, MISSED), names, strict=True)]
    figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False, fontsize=10)
    figure.suptitle(f"{picture.name}     Dice {picture.dice:.3f}", fontsize=13)
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', picture.name)}.png"
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _tinted(base: Any, mask: Any, colour: tuple[float, float, float], opacity: float) -> Any:
    """Return the image (H, W, 3) with a colour laid over it where the mask is true."""
    content = base.copy()
    content[mask] = (1 - opacity) * base[mask] + opacity * np.asarray(colour)
    return content
