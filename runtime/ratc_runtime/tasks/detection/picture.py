"""The data of a picture of boxes. Does not import matplotlib, so that ranks can send it to the one that draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Picture:
    """One sample: image (C, H, W) in [0, 1], truth (N, 6) and detections (K, 6) in the form of `metrics.Scored`."""

    index: int
    name: str
    image: torch.Tensor
    truth: torch.Tensor
    found: torch.Tensor
