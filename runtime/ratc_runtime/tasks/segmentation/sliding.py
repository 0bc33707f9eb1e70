"""Sliding-window inference: the logits of a whole picture or volume from overlapping patches of training's size."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.volumes import corners
from ratc_runtime.data.whole import patch
from ratc_runtime.tasks.outputs import tensor_of


def slide(predict: Callable[[Any], Any], image: torch.Tensor, lock: Lock, overlap: float) -> torch.Tensor:
    """Return the logits (1, 1 or K, ...) of a whole image (C, ...), both on the host.

    `predict` gets patches of the lock's size, as many as its micro-batch has. They cover the image in a centred grid,
    and the share `overlap` of one another. The logits of a pixel are the mean over its patches, weighted by a Gaussian
    of the place in each.
    """
    size, whole = tuple(lock.data.image_size), tuple(image.shape[1:])
    weight = gaussian(size)
    logits: torch.Tensor | None = None
    weights = torch.zeros(whole)
    places = iter(corners(whole, size, overlap))
    while group := list(itertools.islice(places, lock.training.micro_batch_size)):
        outputs = tensor_of(predict(default_collate([patch(image, corner, lock) for corner in group])))
        outputs = resized(outputs.float().cpu(), size)
        if logits is None:
            logits = torch.zeros(outputs.shape[1], *whole)
        for corner, output in zip(group, outputs, strict=True):
            inside, source = overlapping(corner, size, whole)
            into, of = (slice(None), *inside), (slice(None), *source)
            logits[into] += output[of] * weight[source]
            weights[inside] += weight[source]
    assert logits is not None
    return (logits / weights)[None]


def resized(output: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Return logits (B, K, ...) of another size."""
    if tuple(output.shape[2:]) == tuple(size):
        return output
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(output, size=size, mode=mode, align_corners=False)


def overlapping(
    corner: tuple[int, ...], patch: tuple[int, ...], whole: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the part of an image that a patch covers, and the same part of the patch."""
    inside, source = [], []
    for first, side, length in zip(corner, patch, whole, strict=True):
        low, high = max(0, first), min(length, first + side)
        inside.append(slice(low, high))
        source.append(slice(low - first, high - first))
    return tuple(inside), tuple(source)


@cache
def gaussian(patch: tuple[int, ...]) -> torch.Tensor:
    """Return the weight of each pixel of a patch, of its size: 1 in the middle, with a standard deviation of an eighth
    of each side, and 0.001 at least (as MONAI's `sliding_window_inference` with `mode="gaussian"`).
    """
    weight = torch.ones(())
    for side in patch:
        place = torch.arange(side) - (side - 1) / 2
        weight = weight[..., None] * torch.exp(-(place**2) / (2 * (side / 8) ** 2))
    return weight.clamp(min=1e-3)
