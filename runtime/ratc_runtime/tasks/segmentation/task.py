"""Binary segmentation as a task: targets and logits are (B, 1, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from ratc_runtime.distributed import World
from ratc_runtime.tasks.base import Task
from ratc_runtime.tasks.segmentation import baseline
from ratc_runtime.tasks.segmentation.losses import LOSSES
from ratc_runtime.tasks.segmentation.metrics import Overlap, counts, score
from ratc_runtime.tasks.segmentation.model import SegmentationModel
from ratc_runtime.tasks.segmentation.picture import Picture


class Segmentation(Task):
    """Foreground and background."""

    losses = LOSSES

    def model(self, backbone: nn.Module) -> nn.Module:
        """Return RAT with the head that goes back to pixels."""
        lock = self.lock
        scales = tuple(lock.data.scales) if lock.model.multi_scale else (1.0,)
        # The finest image's spacing, which the coarser ones are multiples of.
        spacing = lock.model.args.get("spacing") or 1.0
        return SegmentationModel(backbone, lock.data.channels, backbone.feature_dims, scales, spacing)  # type: ignore[arg-type]

    def collate(self, targets: Sequence[Any]) -> torch.Tensor:
        """Return masks as (B, 1, H, W), float32."""
        stacked: torch.Tensor = default_collate(list(targets))
        return stacked.float()

    def example_target(self, count: int, device: torch.device) -> torch.Tensor:
        """Return random masks of the lock's size."""
        height, width = self.lock.data.image_size
        largest = max(self.lock.data.scales)
        size = max(1, round(height * largest)), max(1, round(width * largest))
        # In place: a trace counts every tensor, and a loader makes one.
        return torch.rand(count, 1, *size, device=device).round_()

    def scorer(self) -> Overlap:
        """Return Dice and IoU over the split."""
        return Overlap()

    def baseline(self, train: Any, test: Any, world: World) -> dict[str, float]:
        """Score the mean training mask, cut where that is best."""
        found, threshold = baseline.evaluate(train, test, world)
        return {"dice": found.dice, "iou": found.iou, "threshold": threshold}

    def picture(self, index: int, name: str, image: torch.Tensor, target: Any, output: Any) -> Picture:
        """Return image, truth and prediction."""
        dice = score(counts(output, target)[0].cpu()).dice
        truth, prediction = (target[0, 0] >= 0.5).cpu(), (output[0, 0] > 0).cpu()
        return Picture(index, name, image.cpu(), truth, prediction, dice)

    def draw(self, folder: Path, pictures: Sequence[Picture]) -> list[Path]:
        """Draw one PNG per picture: image, truth, prediction, and both over the image."""
        # Imported here: matplotlib takes a second, and only the end of a run draws.
        from ratc_runtime.tasks.segmentation.figures import draw_overlays

        return draw_overlays(folder, list(pictures))
