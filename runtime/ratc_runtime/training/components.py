"""The parts of a run (model, task, data, loss, callbacks), from the lock or from a caller of `UnifiedTrainer`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ratc_runtime.callbacks import HOOKS, Callback
from ratc_runtime.checkpoint.first_weights import begin_with
from ratc_runtime.config.lock import Lock
from ratc_runtime.config.sections import Loss, Memory
from ratc_runtime.data.folders import SPLITS
from ratc_runtime.data.joint import open_data_set
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.build import build_model
from ratc_runtime.models.frozen import freeze
from ratc_runtime.models.import_callable import build, name_of
from ratc_runtime.tasks import make_task
from ratc_runtime.tasks.base import Task
from ratc_runtime.tasks.custom import Custom
from ratc_runtime.tasks.own_scores import Score, build_scores


@dataclass(frozen=True)
class Own:
    """Parts from the caller. An empty one is built from the lock. With `scores` the task is a custom one."""

    model: nn.Module | None = None
    datasets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    criterion: Any = None
    scores: Mapping[str, Score] | None = None
    callbacks: Sequence[Callback] = ()

    def named_in(self, lock: Lock) -> Lock:
        """Return the lock with the names of these parts in place of its own, so that all records name the parts in use.

        With an own model the predicted memory is dropped, because it belongs to the lock's model.
        """
        if self.model is not None:
            model = lock.model.replace(name=name_of(self.model), args={}, attention_memory="full", output=None)
            lock = lock.replace(
                model=model, memory=Memory(peak_allocated_bytes=None, peak_reserved_bytes=None, margin=None)
            )
        if self.datasets:
            data = lock.data.replace(dataset=name_of(self.datasets["train"]), args={})
            lock = lock.replace(data=data)
        if self.criterion is not None:
            training = lock.training.replace(loss=Loss(name=name_of(self.criterion), args={}))
            lock = lock.replace(training=training)
        return lock


@dataclass(frozen=True)
class Parts:
    """The parts of a run. `datasets` has `train` and `val`, and `test` unless the caller passed none. `began_with` says
    which weights of a file were loaded, "" if there is none.
    """

    model: nn.Module
    task: Task
    criterion: Any
    datasets: Mapping[str, Any]
    callbacks: Sequence[Callback]
    began_with: str = ""


def open_data(lock: Lock, data_dir: Path, own: Own) -> Mapping[str, Any]:
    """Return the datasets by split; raise R506 or R509 if they cannot be opened."""
    if lock.tasks and (own.datasets or own.criterion is not None or own.scores is not None):
        raise RuntimeFinding(
            "R509",
            "with several tasks, data set, loss and scores cannot be passed to UnifiedTrainer",
            help="name them for each task in the spec, `package.module:callable`",
        )
    if own.datasets and lock.data.folds is not None:
        raise RuntimeFinding(
            "R509",
            "the lock has folds, and the data sets come from a caller",
            help="divide the samples yourself, or name the data set in the spec, `package.module:callable`",
        )
    return own.datasets or {split: open_data_set(lock, data_dir, split) for split in SPLITS}


def make_parts(lock: Lock, datasets: Mapping[str, Any], own: Own, weights: Path | None = None) -> Parts:
    """Build the parts that the caller did not pass. The random state decides the weights, and then the file of
    `training.init_from`, `weights`.

    Raises R509, R545, the errors of `load_weights`, and R595 if the file does not fit the model.
    """
    task = make_task(lock) if own.scores is None else Custom(lock, own.scores)
    task.opened(datasets)
    task.own_scores = build_scores(lock.evaluation.scores)
    model = own.model if own.model is not None else build_model(lock)
    if own.model is not None:
        freeze(model, lock.training.frozen)
    began_with = ""
    if weights is not None and lock.training.init_from is not None:
        began_with = begin_with(model, lock.training.init_from, weights)
    if lock.compression is not None and lock.compression.aware:
        # Imported here: few runs need it.
        from ratc_runtime.extras.quantizing import make_aware

        make_aware(model)
    criterion = own.criterion if own.criterion is not None else task.loss()
    callbacks = [*_callbacks(lock.training.callbacks, lock.training.callback_args), *own.callbacks]
    return Parts(model, task, criterion, datasets, callbacks, began_with)


def _callbacks(names: Sequence[str], arguments: Sequence[dict[str, Any]]) -> list[Callback]:
    """Build the callbacks that a lock names; raise R509 if one cannot be built or is not a `Callback`."""
    made = [build("callback", name, args) for name, args in zip(names, arguments or [{} for _ in names], strict=True)]
    for name, callback in zip(names, made, strict=True):
        if not isinstance(callback, Callback):
            raise RuntimeFinding(
                "R509",
                f"callback {name} returned {type(callback).__name__}",
                help="derive it from ratc_runtime.callbacks.Callback",
            )
        if not any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in HOOKS):
            raise RuntimeFinding(
                "R509",
                f"callback {name} ({type(callback).__name__}) defines none of {', '.join(HOOKS)}, and would do nothing",
                help="give the methods these names; those of other libraries are not called",
            )
    return made
