"""The pictures of classification: the confusion matrix, and images with the likeliest classes."""

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

from ratc_runtime.data.near import drawn
from ratc_runtime.output.atomic import replacing
from ratc_runtime.tasks.classification.picture import Matrix, Picture

DPI = 100
MATRIX = "confusion.png"
#: Classes up to which the matrix has counts in its cells, and up to which it has names at its axes.
_COUNTS, _NAMES = 25, 60
#: Classes that stand beside an image.
_LIKELIEST = 5
# Told apart by people who see no red or green as well: blue for the true class, orange for others.
_TRUE, _OTHER = "#0072B2", "#E69F00"


def draw_all(folder: Path, pictures: Sequence[Picture | Matrix], class_names: Sequence[str]) -> list[Path]:
    """Draw one PNG per picture, `confusion.png` of the matrix; return the files."""
    if folder.is_symlink():
        folder.unlink()  # what lies behind a link is not this run's to delete
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    return [
        _draw_matrix(folder / MATRIX, one.counts.numpy(), class_names)
        if isinstance(one, Matrix)
        else _draw_picture(folder, one, class_names)
        for one in pictures
    ]


def draw_samples(path: Path, samples: Sequence[tuple[str, torch.Tensor, str]]) -> None:
    """Draw name, image (C, ...) and class of each sample into one PNG, two in a row."""
    rows = -(-len(samples) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 4.4 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, image, label) in zip(axes.flat, samples, strict=False):
        axis.imshow(_pixels(image), interpolation="nearest")
        axis.set_title(f"{drawn(name)}\n{drawn(label)}", fontsize=9)
    figure.savefig(path, dpi=DPI, format="png")
    plt.close(figure)


def _draw_matrix(path: Path, counts: Any, names: Sequence[str]) -> Path:
    """Draw the matrix with rows that sum to 1, so that a rare class is as visible as a common one."""
    number = len(names)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    inches = min(16.0, max(4.5, 0.45 * number + 2.5))
    figure, axis = plt.subplots(figsize=(inches + 0.8, inches), layout="constrained")
    shown = axis.imshow(share, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(shown, ax=axis, shrink=0.8, label="share of the true class")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if number <= _NAMES:
        labels = [drawn(name) for name in names]
        axis.set_xticks(range(number), labels, rotation=90, fontsize=8)
        axis.set_yticks(range(number), labels, fontsize=8)
    for row in range(number if number <= _COUNTS else 0):
        for column in range(number):
            if counts[row, column]:
                colour = "black" if share[row, column] > 0.5 else "white"
                text = f"{int(counts[row, column])}"
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axis.set_title(f"{int(counts.sum())} samples", fontsize=11)
    return _save(figure, path)


def _draw_picture(folder: Path, picture: Picture, names: Sequence[str]) -> Path:
    base = _pixels(picture.image)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    left.imshow(base, interpolation="nearest")
    left.set_title(f"true: {drawn(names[picture.truth])}", fontsize=11)
    left.set_axis_off()
    # Stable, so that equal probabilities come in the same order everywhere.
    order = torch.sort(picture.probabilities, descending=True, stable=True).indices[:_LIKELIEST].tolist()
    values = [float(picture.probabilities[one]) for one in order]
    right.barh(range(len(order)), values, color=[_TRUE if one == picture.truth else _OTHER for one in order])
    right.set_yticks(range(len(order)), [drawn(names[one]) for one in order])
    right.invert_yaxis()
    right.set_xlim(0, 1)
    right.set_xlabel("probability")
    figure.suptitle(drawn(picture.name), fontsize=12)
    return _save(figure, folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', picture.name)}.png")


def _pixels(image: torch.Tensor) -> Any:
    """Return an image (C, H, W), or the middle slice of a volume (C, D, H, W), as (H, W, 3)."""
    content = image.float().numpy()
    flat = content[:, content.shape[1] // 2] if content.ndim == 4 else content
    rgb = flat if flat.shape[0] == 3 else np.repeat(flat[:1], 3, axis=0)
    return np.clip(np.ascontiguousarray(np.moveaxis(rgb, 0, 2)), 0, 1)


def _save(figure: Any, path: Path) -> Path:
    with replacing(path) as work:
        figure.savefig(work, dpi=DPI, format="png")
    plt.close(figure)
    return path
