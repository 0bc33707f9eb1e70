"""Predicted classes as one CSV file, which spreadsheets and `data.dataset: csv` read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ratc_runtime.data.unlabelled import Piece
from ratc_runtime.output import atomic

FILE = "predictions.csv"


class ClassWriter:
    """Gathers a row for each image, and writes them at the end.

    The columns are `path`, the image's file name; `label`, the likeliest class; its `probability`; and
    `probability/NAME` of each class.
    """

    together = True

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self.folder, self._names = folder, list(class_names)
        self._rows: list[list[str]] = []

    def path_of(self, image: Path) -> Path:
        """Return the file of all predictions."""
        return self.folder / FILE

    def add(self, piece: Piece, output: Any) -> None:
        """Take the logits (1, K) of one image."""
        probabilities = output[0].float().softmax(0)
        best = int(probabilities.argmax())
        each = [f"{float(value):.6f}" for value in probabilities]
        self._rows.append([piece.path.name, self._names[best], each[best], *each])

    def close(self) -> None:
        """Write the file in one piece."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["path", "label", "probability", *(f"probability/{name}" for name in self._names)])
        table.writerows(self._rows)
        atomic.write_text(self.folder / FILE, text.getvalue())
