"""Losses of segmentation at points with known values."""

from __future__ import annotations

import math

import pytest
import torch
from ratc_runtime.tasks.segmentation.losses import Bce, Combined, Dice


def test_losses_equal_known_values() -> None:
    target = torch.zeros(2, 1, 4, 4)
    target[:, :, :2] = 1
    assert Bce()(torch.zeros_like(target), target).item() == pytest.approx(math.log(2))
    right, wrong = (target * 2 - 1) * 50, (1 - target * 2) * 50
    for loss in (Bce(), Dice(), Combined()):
        assert loss(right, target).item() == pytest.approx(0, abs=1e-6)
        assert loss(wrong, target).item() > 0.9 * (50 if isinstance(loss, Bce) else 1)
    empty = torch.zeros_like(target)
    assert Dice()(torch.full_like(target, -50.0), empty).item() == pytest.approx(0, abs=1e-6)
    assert Combined()(torch.zeros_like(target).bfloat16(), target).dtype == torch.float32
