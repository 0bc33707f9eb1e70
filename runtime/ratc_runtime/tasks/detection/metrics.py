"""Average precision as COCO defines it, by pycocotools, over a whole split and all ranks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ratc_runtime.distributed.world import World
from ratc_runtime.tasks.detection.boxes import to_corners
from ratc_runtime.tasks.outputs import mapping_with

#: Detections of an image that count, the best ones; COCO's number.
MOST = 100


class Scored(NamedTuple):
    """One image: detections (K, 6) as x0, y0, x1, y1, score, label; truth (N, 6) as x0, y0, x1, y1, label, crowd.

    Corners are shares of the image, float64: average precision needs no pixels.
    """

    found: np.ndarray[Any, Any]
    truth: np.ndarray[Any, Any]


def detections(logits: torch.Tensor, boxes: torch.Tensor, most: int = MOST) -> torch.Tensor:
    """Return the best detections (B, K, 6) of logits (B, L, Q, C) and boxes (B, L, Q, 4): the last layer's.

    Every pair of query and class is a detection, without suppression. They have corners, score and label, best first.
    """
    scores = logits[:, -1].float().sigmoid()
    classes = scores.shape[-1]
    # Stable, so that equal scores come in the same order everywhere.
    best, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    best, order = best[:, :most], order[:, :most]
    corners = to_corners(boxes[:, -1].float()).clamp(0, 1)
    query = torch.div(order, classes, rounding_mode="floor")
    chosen = corners.gather(1, query[..., None].expand(-1, -1, 4))
    return torch.cat([chosen, best[..., None], (order % classes)[..., None].float()], dim=-1)


class AveragePrecision:
    """`map` (the mean over IoU 0.5 to 0.95 and over classes), `map_50` and `map_75`, and `map/CLASS` of each class."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._images: list[Scored] = []

    def add(self, output: Mapping[str, torch.Tensor], target: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Count outputs with `logits` (B, L, Q, C) and `boxes` (B, L, Q, 4), and the targets of their B samples."""
        mapping_with(output, ("logits", "boxes"))
        found = detections(output["logits"], output["boxes"]).double().cpu().numpy()
        for one, truth in zip(found, target, strict=True):
            self.add_detections(one, truth)

    def add_detections(self, found: np.ndarray[Any, Any], target: Mapping[str, torch.Tensor]) -> None:
        """Count detections (K, 6) of one image."""
        self._images.append(Scored(found, truth_of(target)))

    def scores(self, world: World) -> dict[str, float]:
        """Return the scores over all ranks; NaN for a class, or a split, without objects."""
        images = [image for part in world.gather(self._images) for image in part]
        # One process computes, on images in an order that does not depend on their ranks: it decides between equal
        # scores.
        images.sort(key=lambda image: (image.truth.tobytes(), image.found.tobytes()))
        made = _evaluate(images, self.class_names) if world.main else None
        scores: dict[str, float] = world.gather(made)[0]
        return scores


def truth_of(target: Mapping[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    """Return the truth of a sample, (N, 6) float64 as in `Scored`, including crowds."""
    parts = []
    for boxes, labels, crowd in (("boxes", "labels", 0.0), ("crowd_boxes", "crowd_labels", 1.0)):
        corners, label = to_corners(target[boxes].double()).cpu(), target[labels].double().cpu()
        parts.append(torch.cat([corners, label[:, None], torch.full_like(label, crowd)[:, None]], dim=1))
    return torch.cat(parts).numpy()


def _evaluate(images: Sequence[Scored], class_names: Sequence[str]) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        for row in image.truth.tolist():
            truth.append({**_entry(number, row[:4], row[4], len(truth)), "iscrowd": int(row[5])})
        for row in image.found.tolist():
            found.append({**_entry(number, row[:4], row[5], len(found)), "score": row[4]})
    classes = [{"id": label, "name": name} for label, name in enumerate(class_names)]
    listed = [{"id": number} for number in range(len(images))]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables
        known, made = COCO(), COCO()
        known.dataset = {"images": listed, "annotations": truth, "categories": classes}
        made.dataset = {"images": listed, "annotations": found, "categories": classes}
        known.createIndex()
        made.createIndex()
        evaluation = COCOeval(known, made, "bbox")
        # Of all sizes: small and large are defined in the pixels of COCO's own images.
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [MOST]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]  # (IoU thresholds, recalls, classes)
    scores = {"map": _mean(precision), "map_50": _mean(precision[0]), "map_75": _mean(precision[5])}
    return scores | {f"map/{name}": _mean(precision[..., label]) for label, name in enumerate(class_names)}


def _entry(image: int, corners: Sequence[float], label: float, number: int) -> dict[str, Any]:
    x0, y0, x1, y1 = corners
    wide, high = x1 - x0, y1 - y0
    # An id of 0 stands for "nothing matched" inside of pycocotools.
    return {
        "id": number + 1,
        "image_id": image,
        "category_id": int(label),
        "bbox": [x0, y0, wide, high],
        "area": wide * high,
    }


def _mean(precision: np.ndarray[Any, Any]) -> float:
    """Return the mean over the defined values. pycocotools has -1 for a class without objects."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else float("nan")
