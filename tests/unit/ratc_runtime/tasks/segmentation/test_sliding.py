"""Whole images from the outputs of overlapping patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ratc_runtime.config.lock import lock_from
from ratc_runtime.data.volumes import corners
from ratc_runtime.tasks.segmentation.sliding import gaussian, slide

from tests.helpers.lockfile import lock_content


@pytest.mark.parametrize(("whole", "patch"), [((9, 12, 7), (6, 4, 8)), ((13, 7), (6, 8)), ((5, 21), (6, 8))])
def test_overlapping_patches_are_averaged_by_their_weights(whole: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """By a plain loop over all pixels, of a picture and of a volume."""
    classes = 3
    lock = lock_from(lock_content(data__image_size=list(patch), training__micro_batch_size=2))
    generator = torch.Generator().manual_seed(0)
    given: list[torch.Tensor] = []

    def predict(images: Any) -> torch.Tensor:
        assert tuple(images.shape[1:]) == (1, *patch)
        given.append(torch.randn(len(images), classes, *patch, generator=generator))
        return given[-1]

    kind = torch.uint8 if len(whole) == 2 else torch.float32
    found = slide(predict, torch.zeros(1, *whole, dtype=kind), lock, 0.5)
    total, weights = np.zeros((classes, *whole)), np.zeros(whole)
    for corner, logits in zip(corners(whole, patch, 0.5), torch.cat(given), strict=True):
        for place in np.ndindex(*patch):
            at = tuple(first + step for first, step in zip(corner, place, strict=True))
            if all(0 <= index < length for index, length in zip(at, whole, strict=True)):
                weight = float(gaussian(patch)[place])
                total[(slice(None), *at)] += weight * logits[(slice(None), *place)].numpy()
                weights[at] += weight
    assert found.shape == (1, classes, *whole)
    np.testing.assert_allclose(found[0].numpy(), total / weights, rtol=1e-4, atol=1e-5)


def test_weights_fall_from_the_middle_to_the_borders() -> None:
    weight = gaussian((9, 9, 9))
    assert weight[4, 4, 4] == 1
    assert torch.equal(weight, weight.flip(0, 1, 2))
    assert weight[0, 0, 0] == weight.min() == torch.tensor(1e-3)
    assert weight[4, 4, 2] == torch.exp(torch.tensor(-(2**2) / (2 * (9 / 8) ** 2)))
