"""Scores from sums, and the baseline for comparison."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ratc_runtime.tasks.segmentation.metrics import baseline_mask, counts, labels, score

from tests.effort import examples


def test_scores_are_computed_from_sums_not_averages() -> None:
    target = torch.zeros(2, 1, 10, 10)
    target[0, :, :, :5] = 1  # 50 pixels, all found
    target[1, 0, 0, 0] = 1  # one, missed, and one too many
    logits = torch.full_like(target, -1.0)
    logits[0][target[0] == 1] = 1
    logits[1, 0, 9, 9] = 1
    per_sample = counts(*labels(logits, target))
    assert per_sample.tolist() == [[[50, 0, 0]], [[0, 1, 1]]]
    total = score(per_sample.sum((0, 1)))
    assert total.dice == pytest.approx(100 / 102)
    assert total.iou == pytest.approx(50 / 52)
    nothing = score(torch.zeros(3))
    assert math.isnan(nothing.dice)
    assert math.isnan(nothing.iou)


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_the_baseline_is_the_mean_mask_at_its_best_threshold(seed: int, number: int) -> None:
    masks = (torch.rand(number, 1, 3, 4, generator=torch.Generator().manual_seed(seed)) > 0.6).double()
    mask, threshold = baseline_mask(masks.sum(0), number)
    if not masks.any():
        assert math.isnan(threshold)
        assert not mask.any()
        return
    mean = masks.mean(0)
    assert torch.equal(mask, mean >= threshold - 1e-9)

    def dice(candidate: torch.Tensor) -> float:
        return score(counts(*labels((candidate.double() - 0.5).expand_as(masks), masks)).sum((0, 1))).dice

    best = max(dice(mean >= level) for level in mean.unique())
    assert dice(mask) == pytest.approx(best)
