"""What an overlay is drawn from; free of matplotlib, so that ranks can send it to the one that draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Picture:
    """One sample for an overlay: image (C, H, W) in [0, 1], truth and prediction (H, W) bool."""

    index: int
    name: str
    image: torch.Tensor
    truth: torch.Tensor
    prediction: torch.Tensor
    dice: float
