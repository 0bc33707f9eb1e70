"""The pictures of a run: learning curves, and image, truth and prediction side by side."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from ratc_runtime.evaluate import Picture

# Told apart by people who see no red or green as well: blue, orange, magenta.
AGREED, EXTRA, MISSED = (0.12, 0.47, 0.71), (1.0, 0.62, 0.0), (0.90, 0.10, 0.55)
DPI = 100
# The anatomy stays visible below what is agreed on; errors are few and thin, and have to stand out.
OPACITY, ERROR_OPACITY = 0.45, 0.95


def draw_curves(path: Path, history: list[dict[str, Any]], title: str, best_epoch: int | None) -> None:
    """Draw loss, Dice, IoU and learning rate over epochs into a PNG."""
    epochs = [record["epoch"] for record in history]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    panels: list[tuple[Any, str, list[tuple[str, str]]]] = [
        (axes[0], "loss", [("train_loss", "train"), ("val_loss", "validation")]),
        (axes[1], "overlap on validation", [("val_dice", "Dice"), ("val_iou", "IoU")]),
        (axes[2], "learning rate", [("learning_rate", "at the epoch's end")]),
    ]
    for axis, label, lines in panels:
        for key, name in lines:
            axis.plot(epochs, [record[key] for record in history], marker="o", markersize=3, label=name)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if best_epoch is not None:
            axis.axvline(best_epoch, color="grey", linestyle=":", label=f"best: epoch {best_epoch}")
        axis.legend(frameon=False)
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(0, 1)
    axes[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


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
