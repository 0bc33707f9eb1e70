"""Boxes: corners (x0, y0, x1, y1) in pixels outside of the model, centre and size as shares of the image inside."""

from __future__ import annotations

import torch


def to_corners(boxes: torch.Tensor) -> torch.Tensor:
    """Turn (..., 4) centre x, centre y, width, height into x0, y0, x1, y1."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def to_centres(boxes: torch.Tensor) -> torch.Tensor:
    """Turn (..., 4) x0, y0, x1, y1 into centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def generalized_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the generalised IoU, in (-1, 1], of boxes as corners; the leading dimensions are broadcast.

    IoU minus the share of the smallest enclosing box that neither covers, so that boxes apart have a gradient
    (Rezatofighi et al., CVPR 2019). Two boxes without area have 0.
    """
    area_1, area_2 = _area(first), _area(second)
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    union = area_1 + area_2 - overlap
    around = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    enclosing = around.clamp(min=0).prod(-1)
    tiny = torch.finfo(first.dtype).tiny
    return overlap / union.clamp(min=tiny) - (enclosing - union) / enclosing.clamp(min=tiny)


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
