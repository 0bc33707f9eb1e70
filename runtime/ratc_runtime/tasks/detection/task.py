"""Detection as a task: a target is a mapping per sample, an output the queries' logits and boxes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.near import shown
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.output.sizes import counted
from ratc_runtime.tasks.base import Task
from ratc_runtime.tasks.detection import baseline
from ratc_runtime.tasks.detection.boxes import to_centres
from ratc_runtime.tasks.detection.losses import LOSSES
from ratc_runtime.tasks.detection.metrics import AveragePrecision, detections, truth_of
from ratc_runtime.tasks.detection.model import DetectionModel
from ratc_runtime.tasks.detection.picture import Picture
from ratc_runtime.tasks.detection.writing import BoxWriter
from ratc_runtime.tasks.names import named_alike

#: Objects of each sample in a rehearsal or a trace; their memory is small beside the model's.
EXAMPLE_OBJECTS = 10


class Detection(Task):
    """Objects of `num_classes` classes, as boxes."""

    losses = LOSSES

    def __init__(self, lock: Lock) -> None:
        super().__init__(lock)
        assert lock.detection is not None  # reading the lock has seen to it
        self.head = lock.detection
        # The lock of a trace has no names.
        self.class_names = list(lock.data.class_names or _unnamed(lock))

    def opened(self, datasets: Mapping[str, Any]) -> None:
        """Take the classes' names from the data sets. Raises R539 if these, or the lock's own, differ.

        Warns if an image has more objects than there are queries: some of them cannot be found.
        """
        self.class_names = named_alike(self.class_names, _unnamed(self.lock), datasets)
        _check_apart(datasets)
        queries = self.head.queries
        for split, data in datasets.items():
            most = getattr(data, "most_objects", 0)
            if most > queries and os.environ.get("RANK", "0") == "0":
                said = f"an image of {split} has {most} objects, and detection.queries is {queries}"
                finding = RuntimeFinding("R540", f"{said}: some of them cannot be found")
                warn(f"[{finding.code}] {finding.message}")

    def model(self, backbone: nn.Module) -> nn.Module:
        """Return RAT with the decoder that turns queries into boxes."""
        lock, head = self.lock, self.head
        scales = tuple(lock.data.scales) if lock.model.multi_scale else (1.0,)
        # The finest image's spacing, which the coarser ones are multiples of.
        spacing = lock.model.args.get("spacing") or 1.0
        return DetectionModel(
            backbone,
            backbone.feature_dims,  # type: ignore[arg-type]  # an int of RAT
            backbone.num_heads,  # type: ignore[arg-type]  # also
            scales,
            lock.data.num_classes,
            head.queries,
            head.decoder_layers,
            spacing,
        )

    def collate(self, targets: Sequence[Any]) -> list[dict[str, torch.Tensor]]:
        """Return a mapping for each sample: `boxes` (N, 4), `labels` (N,), and `crowd_boxes`, `crowd_labels` apart.

        Boxes are centre and size as shares of the image. Crowds, regions of uncounted objects, are not learnt, and
        detections in them do not count as errors (as in COCO). Raises R541 if a target is not of the form of
        `ratc_runtime.data.coco`.
        """
        return [self._prepared(target) for target in targets]

    def _prepared(self, target: Any) -> dict[str, torch.Tensor]:
        if not isinstance(target, Mapping):
            raise _malformed(f"it is a {type(target).__name__}")
        try:
            boxes = torch.as_tensor(target["boxes"], dtype=torch.float32).reshape(-1, 4)
            labels = torch.as_tensor(target["labels"], dtype=torch.int64).reshape(-1)
            crowd = torch.as_tensor(target.get("iscrowd", torch.zeros(len(labels))), dtype=torch.bool).reshape(-1)
        except (TypeError, KeyError, ValueError, RuntimeError, AttributeError) as error:
            raise _malformed(f"{type(error).__name__}: {error}") from None
        classes = self.lock.data.num_classes
        if not len(boxes) == len(labels) == len(crowd):
            raise _malformed(f"{len(boxes)} boxes, {len(labels)} labels, {len(crowd)} iscrowd")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise _malformed(f"labels from {int(labels.min())} to {int(labels.max())}, data.num_classes is {classes}")
        if not bool((boxes[:, 2:] >= boxes[:, :2]).all()):  # false for NaN too
            raise _malformed("a box whose second corner lies before its first")
        height, width = self._size()
        centres = to_centres(boxes / torch.tensor([width, height] * 2, dtype=torch.float32))
        return {
            "boxes": centres[~crowd],
            "labels": labels[~crowd],
            "crowd_boxes": centres[crowd],
            "crowd_labels": labels[crowd],
        }

    @property
    def class_labels(self) -> dict[int, str]:
        """The names of the classes by number."""
        return dict(enumerate(self.class_names))

    def amounts(self, image: Any, target: Any, name: str) -> dict[int, int]:
        """Return the number of objects of each class, without crowds. Raises R541 if the target is malformed."""
        [found] = self.collate([target])
        return dict(Counter(found["labels"].tolist()))

    def _size(self) -> tuple[int, int]:
        """Return height and width of the finest image. A data set's boxes are in its pixels."""
        height, width = self.lock.data.image_size
        largest = max(self.lock.data.scales)
        return max(1, round(height * largest)), max(1, round(width * largest))

    def example_target(self, count: int, device: torch.device) -> list[dict[str, torch.Tensor]]:
        """Return the same number N of random objects for every sample: `boxes` (N, 4), centre and size as shares of the
        image, and `labels` (N,).
        """
        number = min(EXAMPLE_OBJECTS, self.head.queries)
        # Made at once and shared out as views: a trace wants the same operations for every number of samples.
        boxes = torch.rand(count, number, 4, device=device)
        boxes[..., 0:2].mul_(0.5).add_(0.25)
        boxes[..., 2:4].mul_(0.5)
        labels = torch.randint(self.lock.data.num_classes, (count, number), device=device)
        nothing = {"crowd_boxes": boxes[0, :0], "crowd_labels": labels[0, :0]}
        return [{"boxes": boxes[row], "labels": labels[row], **nothing} for row in range(count)]

    def scorer(self) -> AveragePrecision:
        """Return COCO's average precision over the split."""
        return AveragePrecision(self.class_names)

    def baseline(self, train: Any, test: Any, world: World) -> dict[str, float]:
        """Return the scores of the mean box of each class of the training split."""
        return baseline.evaluate(train, test, world, self.collate, self.scorer())

    def picture(self, index: int, name: str, image: torch.Tensor, target: Any, output: Any) -> Picture:
        """Return the image (C, H, W), its truth and its detections in the form of `metrics.Scored`."""
        found = detections(output["logits"], output["boxes"])[0].cpu()
        return Picture(index, name, image.cpu(), torch.from_numpy(truth_of(target[0])), found)

    def writer(self, folder: Path, threshold: float) -> BoxWriter:
        """Return the writer of boxes in the COCO layout, of those with a score of at least `threshold`."""
        return BoxWriter(folder, self.class_names, threshold)

    def draw(self, folder: Path, pictures: Sequence[Picture]) -> list[Path]:
        """Draw one PNG per picture: true boxes, and detections with their scores."""
        # Imported here: matplotlib takes a second, and only the end of a run draws.
        from ratc_runtime.tasks.detection.figures import draw_boxes

        return draw_boxes(folder, pictures, self.class_names)

    def draw_samples(self, path: Path, samples: Sequence[tuple[str, Any, Any]]) -> bool:
        """Draw the boxes of each sample over its image."""
        from ratc_runtime.tasks.detection.figures import draw_samples

        drawn = [(name, image, torch.from_numpy(truth_of(self._prepared(target)))) for name, image, target in samples]
        draw_samples(path, drawn, self.class_names)
        return True


def _unnamed(lock: Lock) -> list[str]:
    """Return names for classes without a name."""
    return [f"class {number}" for number in range(lock.data.num_classes)]


def _check_apart(datasets: Mapping[str, Any]) -> None:
    """Raise R506 if an image file is in two splits. Data sets without `image_files` are not checked."""
    files = {split: set(data.image_files) for split, data in datasets.items() if hasattr(data, "image_files")}
    for one, other in combinations(files, 2):
        shared = files[one] & files[other]
        if shared:
            raise RuntimeFinding(
                "R506",
                f"the annotations of {one} and of {other} both name {shown(str(min(shared)))}",
                f"{counted(len(shared), 'image')} in both: a score on them would be worthless",
                "take the images out of one of the files, with their annotations",
            )


def _malformed(note: str) -> RuntimeFinding:
    return RuntimeFinding(
        "R541",
        "a target of detection has not the form it needs",
        note,
        "a target is a mapping of `boxes` (N, 4), corners x0, y0, x1, y1 in pixels of the image, and `labels` (N,)"
        " from 0; `iscrowd` (N,) if it has crowds",
        everywhere=False,
    )
