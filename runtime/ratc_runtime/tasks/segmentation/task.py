"""Segmentation as a task, in 2D and 3D. With one foreground class targets and logits are (B, 1, ...), targets 0 and 1;
with K classes logits are (B, K, ...) and targets (B, ...) of class numbers, 0 the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed.world import World
from ratc_runtime.tasks.base import Task
from ratc_runtime.tasks.segmentation import baseline
from ratc_runtime.tasks.segmentation.hausdorff import Hausdorff
from ratc_runtime.tasks.segmentation.losses import BINARY, MULTI
from ratc_runtime.tasks.segmentation.metrics import Overlap, counts, labels, mean_score
from ratc_runtime.tasks.segmentation.model import SegmentationModel
from ratc_runtime.tasks.segmentation.picture import Picture
from ratc_runtime.tasks.segmentation.targets import amounts, check_values
from ratc_runtime.tasks.segmentation.writing import MaskWriter


class Segmentation(Task):
    """A class for every pixel."""

    losses = BINARY

    def __init__(self, lock: Lock) -> None:
        super().__init__(lock)
        self.classes, self.ignore_index = lock.data.num_classes, lock.data.ignore_index
        if self.classes > 1:
            known = {"classes": self.classes, "ignore_index": self.ignore_index}
            self.losses = {name: partial(made, **known) for name, made in MULTI.items()}

    @property
    def class_labels(self) -> dict[int, str]:
        """The names of the foreground classes by number."""
        return dict(enumerate(self._foreground, start=1))

    @property
    def background(self) -> dict[int, str]:
        """The name of the background."""
        return {0: self.lock.data.class_names[0] if self.classes > 1 else "background"}

    def amounts(self, image: Any, target: Any, name: str) -> dict[int, int]:
        """Return the pixels of each class. Raises R536, R570 or R573 if the target does not fit the lock."""
        return amounts(image, target, name, self.classes, self.ignore_index)

    @property
    def _foreground(self) -> list[str]:
        """Names of the scored classes."""
        names = self.lock.data.class_names
        return names[1:] if self.classes > 1 else names

    def model(self, backbone: nn.Module) -> nn.Module:
        """Return RAT with the segmentation head."""
        lock = self.lock
        return SegmentationModel(
            backbone,
            lock.data.channels,
            backbone.feature_dims,  # type: ignore[arg-type]  # an int of RAT
            tuple(lock.data.scales) if lock.model.multi_scale else (1.0,),
            # The finest image's spacing, which the coarser ones are multiples of.
            self._spacing,
            lock.spatial_dims,
            self.classes,
        )

    @property
    def _spacing(self) -> float:
        return float(self.lock.model.args.get("spacing") or 1.0)

    def collate(self, targets: Sequence[Any]) -> torch.Tensor:
        """Return masks as (B, 1, ...), float32, or class numbers (B, ...), int64. Raises R536 or R570 for others."""
        stacked: torch.Tensor = default_collate(list(targets))
        check_values(stacked, self.classes, self.ignore_index)
        return stacked.float() if self.classes == 1 else stacked.long()

    def example_target(self, count: int, device: torch.device) -> torch.Tensor:
        """Return random masks of the lock's size: (count, 1, ...) of 0 and 1, or class numbers (count, ...)."""
        largest = max(self.lock.data.scales)
        size = [max(1, round(side * largest)) for side in self.lock.data.image_size]
        if self.classes > 1:
            return torch.randint(self.classes, (count, *size), device=device)
        # In place: a trace counts every tensor, and a loader makes one.
        return torch.rand(count, 1, *size, device=device).round_()

    def scorer(self) -> Overlap:
        """Return Dice and IoU over the split, and Hausdorff distances if the lock asks for them."""
        asked = self.lock.evaluation.hausdorff
        distance = Hausdorff(max(2, self.classes), self._spacing, self.ignore_index) if asked else None
        return Overlap(self._foreground, self.ignore_index, distance)

    def baseline(self, train: Any, test: Any, world: World) -> dict[str, float]:
        """Return the scores of the mean training mask of each class, cut at the best threshold."""
        return baseline.evaluate(train, test, world, self.classes, self.ignore_index)

    def remarks(self, scores: dict[str, float]) -> list[str]:
        """Return lines with the Dice of each class, and the classes without a score."""
        if "dice" in scores and scores["dice"] != scores["dice"]:
            return ["no score: the split has no foreground, and none is predicted"]
        # None of one class; nor if a trainer was given scores of its own.
        dice = {name: scores[f"dice/{name}"] for name in self._foreground if f"dice/{name}" in scores}
        if not dice:
            return []
        said = ["by class: " + "  ".join(f"{name} {value:.4f}" for name, value in dice.items() if value == value)]
        absent = [name for name, value in dice.items() if value != value]
        if absent:
            said.append(f"not scored: {', '.join(absent)}: neither in the masks nor predicted")
        return said

    def picture(self, index: int, name: str, image: torch.Tensor, target: Any, output: Any) -> Picture:
        """Return the image (C, ...), its truth and its prediction, class numbers (...)."""
        predicted, true = labels(output, target)
        dice = mean_score(counts(predicted, true, max(2, self.classes), self.ignore_index)[0].cpu()).dice
        if self.ignore_index is not None:
            ignored = true == self.ignore_index
            predicted, true = predicted.masked_fill(ignored, 0), true.masked_fill(ignored, 0)
        image = image / 255 if image.dtype == torch.uint8 else image  # a whole picture
        truth, prediction = (mask[0].to(torch.uint8).cpu() for mask in (true, predicted))
        return Picture(index, name, image.cpu(), truth, prediction, dice, tuple(self._foreground))

    def writer(self, folder: Path, threshold: float) -> MaskWriter:
        """Return the writer of masks in the images' own sizes. With one foreground class, pixels with a probability
        above `threshold` are foreground.
        """
        return MaskWriter(folder, tuple(self.lock.data.image_size), self.classes, threshold)

    def draw(self, folder: Path, pictures: Sequence[Picture]) -> list[Path]:
        """Draw one PNG per picture: image, truth, prediction, and both over the image; three slices of a volume."""
        # Imported here: matplotlib takes a second, and only the end of a run draws.
        from ratc_runtime.tasks.segmentation.figures import draw_overlays

        return draw_overlays(folder, list(pictures))

    def draw_samples(self, path: Path, samples: Sequence[tuple[str, Any, Any]]) -> bool:
        """Draw image and mask of each sample side by side."""
        from ratc_runtime.tasks.segmentation.figures import draw_samples

        drawn = []
        for name, image, target in samples:
            labels = (target[0] >= 0.5 if self.classes == 1 else target).to(torch.uint8).clone()
            if self.ignore_index is not None:
                labels[target == self.ignore_index] = 0
            drawn.append((name, image.float().numpy(), labels.numpy()))
        draw_samples(path, drawn, self._foreground)
        return True
