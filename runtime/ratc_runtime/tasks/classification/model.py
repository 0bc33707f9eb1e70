"""The head of classification: the mean of RAT's groups, and a linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ClassificationModel(nn.Module):
    """RAT with a head: images to one logit for each class.

    RAT ends with a few group vectors per scale. They are normed and averaged, and the averages of all scales go into
    one linear layer. A group is an equal share of the image, so the average is one over its pixels.

    Forward takes (B, C, H, W) or (B, C, D, H, W), or a list of them from fine to coarse, one per scale; it returns
    (B, classes).
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        scales: tuple[float, ...],
        classes: int,
        spacing: float = 1.0,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # In the units of the finest image's spacing, so that RAT's rotary positions of all scales agree.
        self.spacings = [(spacing * max(scales) / scale,) * dims for scale in scales]
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in scales)
        self.classify = nn.Linear(features * len(scales), classes)

    def forward(self, image: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """Return logits (B, K) for images (B, C, ...) in [0, 1], or for a list of them, one for each scale."""
        images = [image] if isinstance(image, torch.Tensor) else list(image)
        return self.read_groups(images, self.backbone(images, input_spacing=self.spacings))

    def read_groups(self, images: list[torch.Tensor], groups: list[Any]) -> torch.Tensor:
        """Return logits (B, K) from RAT's groups of the images, one mapping with `x_out` (B, N, D) for each scale."""
        pooled = [norm(group["x_out"]).mean(1) for group, norm in zip(groups, self.norms, strict=True)]
        logits: torch.Tensor = self.classify(torch.cat(pooled, dim=1))
        return logits
