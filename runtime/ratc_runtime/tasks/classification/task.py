"""Classification as a task, in 2D and 3D: targets are class numbers (B,), outputs logits (B, K)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.tasks.base import Task
from ratc_runtime.tasks.classification import baseline
from ratc_runtime.tasks.classification.losses import LOSSES
from ratc_runtime.tasks.classification.metrics import Confusion
from ratc_runtime.tasks.classification.model import ClassificationModel
from ratc_runtime.tasks.classification.picture import Matrix, Picture
from ratc_runtime.tasks.classification.writing import ClassWriter
from ratc_runtime.tasks.names import named_alike


class Classification(Task):
    """One of `num_classes` classes for each image."""

    def __init__(self, lock: Lock) -> None:
        super().__init__(lock)
        self.classes = lock.data.num_classes
        # What is traced is a lock without names.
        self.class_names = list(lock.data.class_names or unnamed(self.classes))
        self.losses = {name: partial(made, classes=self.classes) for name, made in LOSSES.items()}

    def opened(self, datasets: Mapping[str, Any]) -> None:
        """Take the classes' names from the data sets; raise R539 if these, or the lock's own, differ."""
        self.class_names = named_alike(self.class_names, unnamed(self.classes), datasets)

    def model(self, backbone: nn.Module) -> nn.Module:
        """Return RAT with the head that gives a logit for each class."""
        lock = self.lock
        return ClassificationModel(
            backbone,
            backbone.feature_dims,  # type: ignore[arg-type]  # an int of RAT
            tuple(lock.data.scales) if lock.model.multi_scale else (1.0,),
            self.classes,
            # The finest image's spacing, which the coarser ones are multiples of.
            float(lock.model.args.get("spacing") or 1.0),
            lock.spatial_dims,
        )

    def collate(self, targets: Sequence[Any]) -> torch.Tensor:
        """Return class numbers as (B,), int64; raise R591 if a target is not the number of one class."""
        return torch.tensor([self._number(target) for target in targets], dtype=torch.int64)

    def _number(self, target: Any) -> int:
        value = target
        if isinstance(target, torch.Tensor):
            if target.numel() != 1 or target.is_floating_point() or target.dtype == torch.bool:
                raise _no_class(f"a tensor of {target.dtype}, {tuple(target.shape)}", self.classes)
            value = target.item()
        try:
            number = value.__index__()
        except (AttributeError, TypeError):
            raise _no_class(f"a {type(value).__name__}", self.classes) from None
        if isinstance(value, bool) or not 0 <= number < self.classes:
            raise _no_class(f"{value!r:.40}", self.classes)
        return int(number)

    @property
    def class_labels(self) -> dict[int, str]:
        """The names of the classes by number."""
        return dict(enumerate(self.class_names))

    def amounts(self, image: Any, target: Any, name: str) -> dict[int, int]:
        """Return the one class of a sample; raise R591 if its target is not the number of one."""
        return {self._number(target): 1}

    def example_target(self, count: int, device: torch.device) -> torch.Tensor:
        """Return random class numbers (count,), int64."""
        return torch.randint(self.classes, (count,), device=device)

    def scorer(self) -> Confusion:
        """Return accuracy and F1 over the split."""
        return Confusion(self.class_names)

    def baseline(self, train: Any, test: Any, world: World) -> dict[str, float]:
        """Return the scores of the commonest class of the training split."""
        return baseline.evaluate(train, test, world, self.collate, self.class_names)

    def remarks(self, scores: dict[str, float]) -> list[str]:
        """Return lines with the classes of the lowest F1, and those without a score."""
        # None if a trainer was given scores of its own.
        each = {name: scores[f"f1/{name}"] for name in self.class_names if f"f1/{name}" in scores}
        scored = sorted((value, name) for name, value in each.items() if value == value)
        said = []
        if len(scored) > 1:
            said.append("lowest F1: " + "  ".join(f"{name} {value:.4f}" for value, name in scored[:5]))
        absent = [name for name, value in each.items() if value != value]
        if absent:
            said.append(f"not scored: {', '.join(absent[:20])}: the split has no such sample, so there is no macro F1")
        return said

    def picture(self, index: int, name: str, image: torch.Tensor, target: Any, output: Any) -> Picture:
        """Return the image (C, ...), its class, and the probabilities (K,) of an output (1, K)."""
        probabilities = output[0].float().softmax(0).cpu()
        return Picture(index, name, image.cpu(), int(target[0]), probabilities)

    def overview(self, scorer: Any, world: World) -> list[Matrix]:
        """Return the confusion matrix of the split."""
        return [Matrix(scorer.matrix(world))]

    def writer(self, folder: Path, threshold: float) -> ClassWriter:
        """Return the writer of classes and their probabilities as CSV. `threshold` has no effect."""
        return ClassWriter(folder, self.class_names)

    def draw(self, folder: Path, pictures: Sequence[Picture | Matrix]) -> list[Path]:
        """Draw the confusion matrix, and one PNG per picture: the image and the likeliest classes."""
        # Imported here: matplotlib takes a second, and only the end of a run draws.
        from ratc_runtime.tasks.classification.figures import draw_all

        return draw_all(folder, pictures, self.class_names)

    def draw_samples(self, path: Path, samples: Sequence[tuple[str, Any, Any]]) -> bool:
        """Draw each sample under the name of its class."""
        from ratc_runtime.tasks.classification.figures import draw_samples

        drawn = [(name, image, self.class_names[self._number(target)]) for name, image, target in samples]
        draw_samples(path, drawn)
        return True


def unnamed(classes: int) -> list[str]:
    """Return names for classes that were given none."""
    return [f"class {number}" for number in range(classes)]


def _no_class(given: str, classes: int) -> RuntimeFinding:
    return RuntimeFinding(
        "R591",
        f"a target of classification is {given}, and not the number of a class",
        f"data.num_classes is {classes}: numbers from 0 to {classes - 1}",
        "give one whole number for each sample, or set data.num_classes and compile again",
        everywhere=False,
    )
