"""What a run needs to know of what is learnt: head, loss, targets, scores and pictures.

The loop, the loaders and the checkpoints know nothing else of a task, so that a new one is a folder beside this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.unlabelled import Piece
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.import_callable import build, call
from ratc_runtime.tasks import Metric, metrics


class Scorer(Protocol):
    """Adds up what the scores of one split are made of."""

    def add(self, output: Any, target: Any) -> None:
        """Count a batch of this rank: the model's output (float32) and the targets, on the device, padding left out."""

    def scores(self, world: World) -> dict[str, float]:
        """Return the scores over all ranks, by name; every rank calls this, and all get the same."""


class Writer(Protocol):
    """Writes what a model predicts for images without truth."""

    #: Whether all images go to one file.
    together: bool

    def path_of(self, image: Path) -> Path:
        """Return the file that the prediction for an image goes to."""

    def add(self, piece: Piece, output: Any) -> None:
        """Take the output for one piece of an image, a batch of one in float32 on the CPU."""

    def close(self) -> None:
        """Write what is written once for all images."""


class Task(ABC):
    """One task of one lock."""

    #: The built-in losses, by the names that a spec has for them.
    losses: ClassVar[Mapping[str, Callable[..., nn.Module]]]

    #: The scores by name, in the order in which they are shown.
    metrics: Mapping[str, Metric]

    #: The tasks that this one is made of, by name; none if it is one by itself.
    parts: Mapping[str, Task] = {}

    @property
    def class_labels(self) -> Mapping[int, str]:
        """The names of the classes by number, without a background; none if the task has no classes."""
        return {}

    @property
    def background(self) -> Mapping[int, str]:
        """The name of the class that is no class by its number; none if the task has no such class."""
        return {}

    @property
    def foreground(self) -> Collection[int]:
        """The numbers of the classes of which a split must have some; none if the task has no classes."""
        return self.class_labels

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.metrics = metrics(lock)

    def opened(self, datasets: Mapping[str, Any]) -> None:
        """Take from the data sets, by split, what a lock does not hold; raise if they do not fit the task."""
        return

    @abstractmethod
    def model(self, backbone: nn.Module) -> nn.Module:
        """Return RAT with the head of this task; its forward takes what the loaders call `image`."""

    def loss(self) -> Callable[[Any, Any], torch.Tensor]:
        """Return the lock's loss, a callable of the model's output and a target that gives a scalar.

        One named `package.module:callable` is called with its `args`, and what it returns is the loss. Raises R509
        if there is none of that name, or if it does not take its arguments.
        """
        named = self.lock.training.loss
        if named.name in self.losses:
            return call("loss", named.name, self.losses[named.name], **named.args)  # type: ignore[no-any-return]
        built = build("loss", named.name, **named.args)
        if not callable(built):
            raise RuntimeFinding("R509", f"loss {named.name} returned {type(built).__name__}, which cannot be called")
        return built  # type: ignore[no-any-return]

    @abstractmethod
    def collate(self, targets: Sequence[Any]) -> Any:
        """Return the targets of a micro-batch as one: see `ratc_runtime.pytree` for what it may be."""

    @abstractmethod
    def example_target(self, count: int, device: torch.device) -> Any:
        """Return random targets of the lock's shape for `count` samples, as `collate` gives them: rehearsal, trace."""

    def amounts(self, image: Any, target: Any, name: str) -> dict[int, int]:
        """Return how many pixels or objects of each class a sample has; nothing if the task has no classes.

        Raises RuntimeFinding if the target is not one of the task, or does not fit the image (None: not compared).
        """
        return {}

    @abstractmethod
    def scorer(self) -> Scorer:
        """Return an empty scorer."""

    def baseline(self, train: Any, test: Any, world: World) -> dict[str, float]:
        """Score the trivial prediction on the test split; every rank calls this. Nothing if there is none."""
        return {}

    def remarks(self, scores: dict[str, float]) -> list[str]:
        """Return lines for a person about the scores of the test split, beside those of `METRICS`."""
        return []

    def picture(self, index: int, name: str, image: torch.Tensor, target: Any, output: Any) -> Any:
        """Return what `draw` needs of one sample, picklable and on the CPU.

        `image` is its finest level (C, ...); `target` and `output` are batches of that one sample.
        """
        return None

    def overview(self, scorer: Any, world: World) -> list[Any]:
        """Return what `draw` needs of the whole split beside single samples, picklable and on the CPU.

        Every rank calls this after it counted its part, and all get the same.
        """
        return []

    def writer(self, folder: Path, threshold: float) -> Writer:
        """Return what writes predictions into a folder; raise R542 if it is not known what an output means."""
        raise RuntimeFinding(
            "R542",
            f"what a {self.lock.task_type} task predicts cannot be written",
            help="ratc_runtime.inference.open_checkpoint returns the model; engine.predict(image) returns its output",
        )

    def draw_samples(self, path: Path, samples: Sequence[tuple[str, Any, Any]]) -> bool:
        """Draw samples (name, finest image, target of a data set) into one PNG; return whether the task can do that."""
        return False

    def draw(self, folder: Path, pictures: Sequence[Any]) -> list[Path]:
        """Draw pictures of the test split into a folder and return the files; none if a task has no pictures."""
        return []
