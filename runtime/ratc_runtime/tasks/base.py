"""The interface of a task to a run: head, loss, targets, scores and pictures.

The loop, the loaders and the checkpoints use nothing else of a task, so a new one is a folder beside this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.unlabelled import Piece
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.import_callable import build, call
from ratc_runtime.tasks import Metric, metrics
from ratc_runtime.tasks.own_scores import Score


class Scorer(Protocol):
    """Accumulates the scores of one split."""

    def add(self, output: Any, target: Any) -> None:
        """Count a batch of this rank: the model's output (float32) and the targets, on the device, without padding."""

    def scores(self, world: World) -> dict[str, float]:
        """Return the scores over all ranks, by name. Every rank calls this, and all get the same."""


class Writer(Protocol):
    """Writes the predictions for images without labels."""

    #: Whether all images go to one file.
    together: bool

    def path_of(self, image: Path) -> Path:
        """Return the file for an image's prediction."""

    def add(self, piece: Piece, output: Any) -> None:
        """Add the output for one piece of an image, a batch of one in float32 on the CPU."""

    def close(self) -> None:
        """Write the content that all images share."""


class Task(ABC):
    """One task of one lock."""

    #: The built-in losses, by the names that a spec has for them.
    losses: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({})

    #: The scores by name, in the order in which they are shown.
    metrics: Mapping[str, Metric]

    #: The tasks that this one consists of, by name; empty for a single task.
    parts: Mapping[str, Task] = {}

    #: The user's scores that the lock names; the evaluation builds them.
    own_scores: Mapping[str, Score] = {}

    @property
    def class_labels(self) -> Mapping[int, str]:
        """The names of the classes by number, without a background; empty if the task has no classes."""
        return {}

    @property
    def background(self) -> Mapping[int, str]:
        """The name of the background by its number; empty if the task has none."""
        return {}

    @property
    def foreground(self) -> Collection[int]:
        """The numbers of the classes of which a split must have some; empty if the task has no classes."""
        return self.class_labels

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.metrics = metrics(lock)

    def opened(self, datasets: Mapping[str, Any]) -> None:
        """Take values that are not in a lock from the data sets, by split. Raises a finding if they do not fit the
        task.
        """
        return

    @abstractmethod
    def model(self, backbone: nn.Module) -> nn.Module:
        """Return RAT with the head of this task. Its forward takes the `image` of the loaders."""

    def loss(self) -> Callable[[Any, Any], torch.Tensor]:
        """Return the lock's loss, a callable of the model's output and a target that gives a scalar.

        A loss `package.module:callable` is the result of that callable, called with its `args`. Raises R509 if there is
        no such loss, or if it does not accept its arguments.
        """
        named = self.lock.training.loss
        if named.name in self.losses:
            return call("loss", named.name, self.losses[named.name], named.args)
        built = build("loss", named.name, named.args)
        if not callable(built):
            raise RuntimeFinding("R509", f"loss {named.name} returned {type(built).__name__}, which cannot be called")
        return built

    @abstractmethod
    def collate(self, targets: Sequence[Any]) -> Any:
        """Return the targets of a micro-batch as one: see `ratc_runtime.data.pytree` for its allowed types."""

    @abstractmethod
    def example_target(self, count: int, device: torch.device) -> Any:
        """Return random targets for `count` samples, in the form of `collate`, for rehearsal and trace."""

    def example(self, count: int, device: torch.device) -> tuple[Any, Any] | None:
        """Return the model's input and the target of `count` samples if the lock does not give their form; else None:
        the input is then images of the lock's size, and the target that of `example_target`.
        """
        return None

    def amounts(self, image: Any, target: Any, name: str) -> dict[int, int]:
        """Return the number of pixels or objects of each class in a sample; empty if the task has no classes.

        Raises RuntimeFinding if the target does not fit the task, or does not fit the image (None: not compared).
        """
        return {}

    @abstractmethod
    def scorer(self) -> Scorer:
        """Return a new scorer, which has counted nothing yet."""

    def baseline(self, train: Any, test: Any, world: World) -> dict[str, float]:
        """Score the trivial prediction on the test split. Every rank calls this. Empty if there is none."""
        return {}

    def remarks(self, scores: dict[str, float]) -> list[str]:
        """Return additional lines about the scores of the test split, for the console."""
        return []

    def picture(self, index: int, name: str, image: torch.Tensor, target: Any, output: Any) -> Any:
        """Return the input of `draw` for one sample, picklable and on the CPU.

        `image` is its finest level (C, ...); `target` and `output` are batches of that one sample.
        """
        return None

    def overview(self, scorer: Any, world: World) -> list[Any]:
        """Return the values that `draw` needs of the whole split beside single samples, picklable and on the CPU.

        Every rank calls this after it counted its part, and all get the same.
        """
        return []

    def writer(self, folder: Path, threshold: float) -> Writer:
        """Return the writer of predictions into a folder. Raises R542 if the task has none.

        `threshold`, between 0 and 1, is the probability or score at which a foreground pixel or a box is predicted.
        """
        raise RuntimeFinding(
            "R542",
            f"what a {self.lock.task_type} task predicts cannot be written",
            help="ratc_runtime.inference.open_checkpoint returns the model; engine.predict(image) returns its output",
        )

    def draw_samples(self, path: Path, samples: Sequence[tuple[str, Any, Any]]) -> bool:
        """Draw samples (name, finest image, target of a data set) into one PNG; return False if the task cannot."""
        return False

    def draw(self, folder: Path, pictures: Sequence[Any]) -> list[Path]:
        """Draw pictures of the test split into a folder and return the files; empty if the task has no pictures."""
        return []
