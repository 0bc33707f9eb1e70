"""The data of an overlay. Does not import matplotlib, so that ranks can send it to the one that draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Picture:
    """One sample for an overlay: image (C, H, W) or (C, D, H, W) in [0, 1], truth and prediction without the C.

    Truth and prediction are class numbers, uint8; `names` are those of the foreground classes, from 1 on. Ignored
    pixels are 0 in both.
    """

    index: int
    name: str
    image: torch.Tensor
    truth: torch.Tensor
    prediction: torch.Tensor
    dice: float
    names: tuple[str, ...]
