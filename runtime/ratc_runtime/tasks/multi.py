"""Several tasks in one run: one backbone, a head for each, and the weighted sum of their losses.

Every micro-batch has the same number of samples of each task, so images, targets and outputs are mappings by the task's
name. The step, the engines and the memory of a step are those of any other model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed.world import World
from ratc_runtime.tasks import make_task
from ratc_runtime.tasks.base import Scorer, Task


class JointModel(nn.Module):
    """A backbone shared by the models of several tasks, which read its features of their own images.

    Forward takes a mapping of images by task, of all tasks or of some, and returns a mapping of their outputs.
    """

    def __init__(self, backbone: nn.Module, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        for model in models.values():
            model.register_module("backbone", None)  # registered once: its weights are saved once, and in no head
        # A task may be called `train` or `keys`, which a module's attributes cannot.
        self.heads = nn.ModuleDict({f"{name}_head": model for name, model in models.items()})

    def forward(self, image: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs by task."""
        outputs = {}
        for name, given in image.items():
            head: Any = self.heads[f"{name}_head"]
            images = [given] if isinstance(given, torch.Tensor) else list(given)
            outputs[name] = head.read_groups(images, self.backbone(images, input_spacing=head.spacings))
        return outputs


class WeightedLoss(nn.Module):
    """The sum of the tasks' losses, each times its weight."""

    def __init__(self, losses: Mapping[str, Callable[[Any, Any], torch.Tensor]], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.parts, self.weights = dict(losses), dict(weights)
        # Losses that are modules move to the device.
        self.own_modules = nn.ModuleList(loss for loss in losses.values() if isinstance(loss, nn.Module))

    def forward(self, output: Mapping[str, Any], target: Mapping[str, Any]) -> torch.Tensor:
        """Return the loss, a scalar, for mappings of outputs and targets by task."""
        losses = [self.weights[name] * loss(output[name], target[name]) for name, loss in self.parts.items()]
        return torch.stack(losses).sum()


class Multi(Task):
    """Several tasks. Everything except the model and the loss is each task's own."""

    def __init__(self, lock: Lock) -> None:
        super().__init__(lock)
        tasks = lock.tasks or {}
        self.parts = {name: make_task(lock.part(name)) for name in tasks}
        self.weights = {name: part.weight for name, part in tasks.items()}

    def opened(self, datasets: Mapping[str, Any]) -> None:
        """Call each task's `opened` with its data sets."""
        for name, task in self.parts.items():
            task.opened({split: dataset.parts[name] for split, dataset in datasets.items()})

    def model(self, backbone: nn.Module) -> JointModel:
        """Return the backbone with a head for each task."""
        return JointModel(backbone, {name: task.model(backbone) for name, task in self.parts.items()})

    def loss(self) -> WeightedLoss:
        """Return the weighted sum of the tasks' losses."""
        return WeightedLoss({name: task.loss() for name, task in self.parts.items()}, self.weights)

    def collate(self, targets: Sequence[Any]) -> dict[str, Any]:
        """Return each task's collated targets."""
        return {name: task.collate([target[name] for target in targets]) for name, task in self.parts.items()}

    def example_target(self, count: int, device: torch.device) -> dict[str, Any]:
        """Return random targets for `count` samples, by task."""
        return {name: task.example_target(count, device) for name, task in self.parts.items()}

    def scorer(self) -> Scorer:
        """Raise TypeError: splits are scored task by task (`ratc_runtime.training.evaluation`)."""
        raise TypeError("several tasks have no scorer in common; each of `parts` has its own")

    def baseline(self, train: Any, test: Any, world: World) -> dict[str, float]:
        """Return the tasks' baselines, prefixed with their names."""
        return {
            f"{name}/{score}": value
            for name, task in self.parts.items()
            for score, value in task.baseline(train.parts[name], test.parts[name], world).items()
        }

    def remarks(self, scores: dict[str, float]) -> list[str]:
        """Return the tasks' remarks, prefixed with their names."""
        return [
            f"{name}: {remark}"
            for name, task in self.parts.items()
            for remark in task.remarks(
                {key.removeprefix(f"{name}/"): value for key, value in scores.items() if key.startswith(f"{name}/")}
            )
        ]

    def draw(self, folder: Path, pictures: Sequence[tuple[str, Any]]) -> list[Path]:
        """Draw each task's pictures, which come with its name, into a folder per task."""
        drawn = []
        for name, task in self.parts.items():
            own = [picture for of, picture in pictures if of == name]
            drawn += task.draw(folder / name, own) if own else []
        return drawn
