"""The segmentation head: it turns RAT's groups into a map of logits, in 2D or 3D."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CONVOLUTION: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class SegmentationModel(nn.Module):
    """RAT with a head: images to logits at the size of the finest image.

    RAT ends with a few group vectors per scale and, per head, `attn_q`: the share of each group in each pixel (it sums
    to one over the groups). Its transpose gives every pixel its mixture of group vectors, which is RAT's own way back
    to pixels and needs no grid. A shallow convolution of the finest image adds the detail between neighbouring pixels.

    Forward takes (B, C, H, W) or (B, C, D, H, W), or a list of them from fine to coarse, one per scale. It returns as
    many dimensions with `outputs` in the second.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        features: int,
        scales: tuple[float, ...],
        spacing: float = 1.0,
        dims: int = 2,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.backbone, self.dims = backbone, dims
        # In the units of the finest image's spacing, so that RAT's rotary positions of all scales agree.
        self.spacings = [(spacing * max(scales) / scale,) * dims for scale in scales]
        self.finest = scales.index(max(scales))
        detail = max(8, features // 2)
        convolution = CONVOLUTION[dims]
        self.stem = nn.Sequential(
            convolution(channels, detail, 3, padding=1),
            nn.GroupNorm(1, detail),
            nn.GELU(),
            convolution(detail, detail, 3, padding=1),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in scales)
        self.fuse = nn.Sequential(
            convolution(features * len(scales) + detail, features, 1), nn.GELU(), convolution(features, outputs, 1)
        )

    def forward(self, image: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """Return logits (B, outputs, ...) for images (B, C, ...) in [0, 1], or for a list of them, one for each scale.

        The logits have the size of the finest image.
        """
        images = [image] if isinstance(image, torch.Tensor) else list(image)
        return self.read_groups(images, self.backbone(images, input_spacing=self.spacings))

    def read_groups(self, images: list[torch.Tensor], groups: list[Any]) -> torch.Tensor:
        """Return logits (B, outputs, ...) from RAT's groups of the images: for each scale a mapping with `x_out` (B, N,
        D) and `attn_q` (B, heads, N, pixels).
        """
        size = images[self.finest].shape[2:]
        maps = [self.stem(images[self.finest])]
        for level, group, norm in zip(images, groups, self.norms, strict=True):
            pixels = _to_pixels(group, norm, level.shape[2:])
            if pixels.shape[2:] != size:
                pixels = F.interpolate(pixels, size=size, mode=INTERPOLATION[self.dims], align_corners=False)
            maps.append(pixels.to(maps[0].dtype))
        logits: torch.Tensor = self.fuse(torch.cat(maps, dim=1))
        return logits


def _to_pixels(group: dict[str, Any], norm: nn.Module, size: torch.Size) -> torch.Tensor:
    """Spread normed group vectors (B, N, D) over pixels by attention (B, heads, N, pixels): (B, D, *size)."""
    vectors, attention = norm(group["x_out"]), group["attn_q"]
    batch, count, width = vectors.shape
    heads = attention.shape[1]
    per_head = vectors.reshape(batch, count, heads, width // heads).permute(0, 2, 3, 1)  # (B, heads, d, N)
    pixels: torch.Tensor = per_head.to(attention.dtype) @ attention  # (B, heads, d, pixels)
    return pixels.reshape(batch, width, *size)
