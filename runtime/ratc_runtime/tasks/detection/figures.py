"""The pictures of detection: image, true boxes and predicted ones side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ratc_runtime.data.near import drawn
from ratc_runtime.output.atomic import replacing
from ratc_runtime.tasks.detection.picture import Picture

# Okabe and Ito's colours, distinguishable with colour blindness; the box also has the name of the class.
COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#0072B2", "#D55E00")
DPI = 100
#: Detections below this score are not drawn.
SHOWN = 0.3


def draw_boxes(folder: Path, pictures: Sequence[Picture], class_names: Sequence[str]) -> list[Path]:
    """Draw one PNG per picture: truth, and detections with their scores; return the files."""
    if folder.is_symlink():
        folder.unlink()  # the target of a link does not belong to this run
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    return [_draw(folder, picture, class_names) for picture in pictures]


def draw_samples(
    path: Path, samples: Sequence[tuple[str, torch.Tensor, torch.Tensor]], class_names: Sequence[str]
) -> None:
    """Draw name, image (C, H, W) and truth (N, 6) of each sample into one PNG, two in a row."""
    rows = -(-len(samples) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 4.2 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, image, truth) in zip(axes.flat, samples, strict=False):
        content = image.permute(1, 2, 0).float().numpy()
        base = np.clip(np.repeat(content, 3, axis=2) if content.shape[2] == 1 else content, 0, 1)
        axis.imshow(base, interpolation="nearest", extent=(0, 1, 1, 0), aspect=base.shape[0] / base.shape[1])
        axis.set_title(f"{drawn(name)}, {len(truth)} object{'s' if len(truth) != 1 else ''}", fontsize=9)
        for row in truth.tolist():
            label = int(row[4])
            text = f"{drawn(class_names[label])} {'crowd' if row[5] else ''}".strip()
            _box(axis, row[:4], COLOURS[label % len(COLOURS)], text)
    figure.savefig(path, dpi=DPI, format="png")
    plt.close(figure)


def _draw(folder: Path, picture: Picture, class_names: Sequence[str]) -> Path:
    image = picture.image.permute(1, 2, 0).numpy()
    base = np.clip(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image, 0, 1)
    height, width = base.shape[:2]
    inches = min(8.0, max(4.0, width / DPI))
    figure, axes = plt.subplots(1, 2, figsize=(2 * inches, inches * height / width + 0.8), layout="constrained")
    truth = [(row[:4], int(row[4]), "crowd" if row[5] else "") for row in picture.truth.tolist()]
    found = [(row[:4], int(row[5]), f"{row[4]:.2f}") for row in picture.found.tolist() if row[4] >= SHOWN]
    for axis, title, boxes in ((axes[0], "truth", truth), (axes[1], f"prediction, scores from {SHOWN}", found)):
        axis.imshow(base, interpolation="nearest", extent=(0, 1, 1, 0), aspect=height / width)
        axis.set_title(title, fontsize=12)
        axis.set_axis_off()
        for corners, label, text in boxes:
            _box(axis, corners, COLOURS[label % len(COLOURS)], f"{drawn(class_names[label])} {text}".strip())
    seen = sorted({label for _, label, _ in truth + found})
    handles = [
        Line2D([], [], color=COLOURS[label % len(COLOURS)], linewidth=3, label=drawn(class_names[label]))
        for label in seen
    ]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower right", ncols=min(6, len(handles)), frameon=False, fontsize=10
        )
    figure.suptitle(drawn(picture.name), fontsize=13)
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', picture.name)}.png"
    with replacing(path) as work:
        figure.savefig(work, dpi=DPI, format="png")
    plt.close(figure)
    return path


def _box(axis: Any, corners: Sequence[float], colour: str, text: str) -> None:
    x0, y0, x1, y1 = corners
    # On a wider dark line: seen on any image.
    for line, width in (("black", 4.0), (colour, 2.0)):
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=line, linewidth=width))
    axis.text(
        x0, y0, text, fontsize=8, color="black", va="bottom", bbox={"facecolor": colour, "edgecolor": "none", "pad": 1}
    )
