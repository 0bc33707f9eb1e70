"""The learning curves of a run, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ratc_runtime.data.near import drawn
from ratc_runtime.output.atomic import replacing
from ratc_runtime.tasks import Metric


def draw_curves(
    path: Path, history: list[dict[str, Any]], metrics: Mapping[str, Metric], title: str, best_epoch: int | None
) -> None:
    """Draw loss, the task's scores and learning rate over epochs into a PNG."""
    epochs = [record["epoch"] for record in history]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    panels: list[tuple[Any, str, list[tuple[str, str]]]] = [
        (axes[0], "loss", [("train_loss", "train"), ("val_loss", "validation")]),
        (axes[1], "scores on validation", [(f"val_{name}", metric.label) for name, metric in metrics.items()]),
        (axes[2], "learning rate", [("learning_rate", "at the epoch's end")]),
    ]
    for axis, label, lines in panels:
        for key, name in lines:
            axis.plot(epochs, [record[key] for record in history], marker="o", markersize=3, label=drawn(name))
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if best_epoch is not None:
            axis.axvline(best_epoch, color="grey", linestyle=":", label=f"best: epoch {best_epoch}")
        axis.legend(frameon=False)
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(0, 1)
    axes[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    figure.suptitle(drawn(title))
    with replacing(path) as work:
        figure.savefig(work, dpi=110, format="png")
    plt.close(figure)
