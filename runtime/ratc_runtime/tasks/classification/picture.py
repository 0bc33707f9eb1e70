"""The content of pictures of classification; free of matplotlib, so that ranks can send it to the drawing one."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Picture:
    """One sample: image (C, ...) in [0, 1], its class number, and the probability of each class (K,)."""

    index: int
    name: str
    image: torch.Tensor
    truth: int
    probabilities: torch.Tensor


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix of a whole split: counts (true, predicted)."""

    counts: torch.Tensor
