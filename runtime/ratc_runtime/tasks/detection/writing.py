"""Predicted boxes as one file in the COCO layout, which other tools and `data.dataset: coco` can read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ratc_runtime.data.unlabelled import Piece
from ratc_runtime.output import atomic
from ratc_runtime.tasks.detection.metrics import detections

FILE = "detections.json"


class BoxWriter:
    """Collects boxes in pixels of the images' files, and writes them at the end.

    Images are numbered from 1 in order of arrival, categories from 1 in the order of the classes. Beside COCO's keys
    each annotation has its `score`, at least `threshold`.
    """

    together = True

    def __init__(self, folder: Path, class_names: Sequence[str], threshold: float) -> None:
        self.folder, self._threshold = folder, threshold
        self._categories = [{"id": number, "name": name} for number, name in enumerate(class_names, 1)]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def path_of(self, image: Path) -> Path:
        """Return the file of all boxes."""
        return self.folder / FILE

    def add(self, piece: Piece, output: Any) -> None:
        """Add the queries' logits and boxes of one image."""
        height, width = piece.size
        identity = len(self._images) + 1
        self._images.append({"id": identity, "file_name": piece.path.name, "width": width, "height": height})
        for left, top, right, bottom, score, label in detections(output["logits"], output["boxes"])[0].tolist():
            if score < self._threshold:
                continue
            box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": identity,
                    "category_id": int(label) + 1,
                    "bbox": [round(side, 2) for side in box],
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                    "score": round(score, 6),
                }
            )

    def close(self) -> None:
        """Write the file atomically."""
        content = {"images": self._images, "annotations": self._annotations, "categories": self._categories}
        atomic.write_text(self.folder / FILE, json.dumps(content, indent=1) + "\n")
