"""The state of a training between its steps: progress, saving, the ranking of epochs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ratc_runtime.callbacks import Callbacks
from ratc_runtime.checkpoint import Checkpoints
from ratc_runtime.checkpoint.places import Place
from ratc_runtime.config.lock import Lock
from ratc_runtime.data.cache import Cache
from ratc_runtime.data.joint import JointLoader, open_evaluation
from ratc_runtime.data.loading import Loader, train_loader
from ratc_runtime.distributed.stop import StopRequest
from ratc_runtime.distributed.world import World
from ratc_runtime.output.memory_report import allocated
from ratc_runtime.output.progress import Reporter
from ratc_runtime.output.results import write_epochs
from ratc_runtime.output.run_history import RunHistory
from ratc_runtime.output.sizes import counted
from ratc_runtime.output.time_accounting import TimeAccounting
from ratc_runtime.tasks import LOSS
from ratc_runtime.tasks.base import Task
from ratc_runtime.tracking import Tracker
from ratc_runtime.training import compiling
from ratc_runtime.training.evaluation import Evaluation
from ratc_runtime.training.lr_schedule import learning_rate
from ratc_runtime.training.micro_batch import Split


@dataclass
class Progress:
    """The progress of a run. A checkpoint holds it beside the weights. Times in seconds."""

    epoch: int = 0  # whole epochs done
    step: int = 0  # optimizer steps done in the epoch under way
    loss_sum: float = 0.0  # over those steps
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    lost: list[int] = field(default_factory=list)  # epochs whose checkpoint could not be written
    tracking_id: str | None = None
    skipped: list[str] = field(default_factory=list)  # names of bad samples left out, by any rank
    data_changes: list[dict[str, Any]] = field(default_factory=list)  # found by later starts: epoch, step, changes
    account: dict[str, float] = field(default_factory=dict)  # see accounting.py
    class_names: dict[str, list[str]] = field(default_factory=dict)  # see tasks/names.py


@dataclass
class Run:
    """The state of the training loop. `lock` is the reviewed lock with the micro-batch of `split`."""

    lock: Lock
    split: Split
    lock_sha256: str
    lock_digest: str  # of all files of the lock
    output_dir: Path
    engine: Any
    world: World
    task: Task
    criterion: Any
    train: Loader
    val: Loader | JointLoader
    test: Loader | JointLoader | None  # None if a caller passed data sets without it
    steps: int  # optimizer steps in an epoch
    parameters: int
    checkpoints: Checkpoints
    progress: Progress
    stop: StopRequest
    reporter: Reporter
    tracker: Tracker
    callbacks: Callbacks
    cache: Cache
    compiling: compiling.Clock
    #: What was loaded of other weights before the first step; "" for a run that began without, or is continued.
    began_with: str = ""
    #: The starts so far and the state of the code, on the main process.
    history: RunHistory | None = None
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.times = TimeAccounting(self.progress, compiling=self.compiling)
        self.times.begin_skipping_from(self.engine.skipped_steps)

    @property
    def loaders(self) -> list[Loader]:
        """The loaders of train, val and, if there is one, test."""
        return [leaf for loader in (self.train, self.val, self.test) if loader is not None for leaf in loader.leaves]

    @property
    def skipped(self) -> set[str]:
        """The names of the skipped samples."""
        return {name for loader in self.loaders for name in loader.skipped}

    def describe(self) -> str:
        """Return the lines that describe the run before it trains."""
        lock, training = self.lock, self.lock.training
        lines = [
            f"{lock.experiment_name}: {lock.model.name}, {self.parameters:,} parameters, {training.precision} on"
            f" {lock.hardware.card or lock.hardware.device} x {self.world.size}",
            f"{len(self.train)} train, {len(self.val)} val, {0 if self.test is None else len(self.test)} test samples;"
            " global batch"
            f" {training.global_batch_size} = {training.micro_batch_size} x"
            f" {training.gradient_accumulation_steps} x {self.world.size}; "
            f"{counted(training.epochs, 'epoch')} of {counted(self.steps, 'step')}",
        ]
        for name, part in (lock.tasks or {}).items():
            sets = [one.dataset.parts[name] for one in (self.train, self.val, self.test) if one is not None]
            sizes = " + ".join(str(len(dataset)) for dataset in sets)
            lines.append(f"task {name}: {part.task_type}, weight {part.weight:g}, {sizes} samples")
        if self.began_with:
            lines.append(self.began_with)
        if self.compiling() >= 1:
            lines.append(f"kernels were compiled in {self.compiling():.0f} s")
        if self.progress.epoch or self.progress.step:
            lines.append(f"continuing after epoch {self.progress.epoch}, step {self.progress.step}")
        missing = self.skipped
        if missing:
            many = counted(len(missing), "sample")
            lines.append(f"left out because an image or a mask is missing: {many}, {min(missing)} the first")
        return "\n".join(lines)

    def reduce_micro_batch(self, when: str, error: str) -> None:
        """Continue with a smaller micro-batch from the last step boundary, in a run of one process.

        Raises R511 if the micro-batch is 1.
        """
        self.split.reduce(when, 0, error, everywhere=True)
        self.lock = self.split.lock
        self.engine.set_split(self.lock)
        self.split.announce(self.engine.module)
        self.split.write()
        self.tracker.note(self.split.parameters())
        before = self.loaders
        for loader in before:
            loader.close()
        rank, task = self.world.rank, self.task
        self.train = train_loader(self.train.dataset, self.lock, rank, task.collate)
        self.val = open_evaluation(self.val.dataset, self.lock, rank, task)
        self.test = None if self.test is None else open_evaluation(self.test.dataset, self.lock, rank, task)
        for old, new in zip(before, self.loaders, strict=True):
            new.skipped |= old.skipped

    def save(self, wait: bool = False) -> bool:
        """Save the current state; return whether that succeeded.

        With `checkpoint.asynchronous` a failure is known only at the next save, unless `wait`.
        """
        self.checkpoints.finish_write()
        self._note_lost()
        self.progress.tracking_id = self.world.gather(self.tracker.run_id)[0]
        self.note_skipped()
        # On the disk before a checkpoint says that these steps are done: after a crash they are not made again.
        self.tracker.flush()
        self.times.lap("other")
        saved = self.checkpoints.save(dataclasses.asdict(self.progress), self.ranking(), wait)
        self.times.lap("checkpoint")
        self._note_lost()
        return saved

    def save_if_due(self) -> None:
        """Save within an epoch if `checkpoint.every_steps` asks for it. The end of an epoch is saved after its
        evaluation.
        """
        progress, every = self.progress, self.lock.checkpoint.every_steps
        if every and progress.step < self.steps and (progress.epoch * self.steps + progress.step) % every == 0:
            self.save()

    def _note_lost(self) -> None:
        lost = {place.epoch for place in self.checkpoints.take_lost() if place.step == 0}
        if lost:
            self.progress.lost = sorted(lost.union(self.progress.lost))
            self.progress.best_epoch = next((place.epoch for place in self.ranking()), None)

    @property
    def _pruned(self) -> int:
        """The epoch by which all is pruned; 0 if training prunes nothing."""
        asked = self.lock.compression
        return (asked.end_epoch or 0) if asked is not None and asked.begin_epoch is not None else 0

    @property
    def trained(self) -> bool:
        """Whether no further epoch is to be trained: all are, or `training.early_stopping` ends the training."""
        return self.progress.epoch >= self.lock.training.epochs or self.ended_early

    @property
    def ended_early(self) -> bool:
        """Whether `training.early_stopping` ends the training before its last epoch, by the evaluated epochs.

        Epochs before all is pruned do not count: their scores fall as weights become zero.
        """
        asked = self.lock.training.early_stopping
        if asked is None or self.progress.epoch >= self.lock.training.epochs:
            return False
        better = 1.0 if self.task.metrics.get(asked.metric, LOSS).larger_is_better else -1.0
        counted = [record for record in self.progress.history if record["epoch"] > self._pruned]
        return without_improvement(
            [record.get(f"val_{asked.metric}") for record in counted], better, asked.min_delta
        ) >= (asked.patience)

    def ranking(self) -> list[Place]:
        """Return the places of the evaluated epochs by `checkpoint.best_metric`, best first; equal ones in order.

        Epochs whose score is missing or not finite come last, by validation loss. If training prunes weights, the
        epochs after all of them are pruned come first.
        """
        name, pruned = self.lock.checkpoint.best_metric, self._pruned
        sign = -1.0 if self.task.metrics.get(name, LOSS).larger_is_better else 1.0

        def key(record: dict[str, Any]) -> tuple[bool, bool, float]:
            value, loss = record.get(f"val_{name}"), record["val_loss"]
            if value is not None and math.isfinite(value):
                return record["epoch"] <= pruned, False, sign * value
            return record["epoch"] <= pruned, True, loss if loss is not None and math.isfinite(loss) else math.inf

        kept = [record for record in self.progress.history if record["epoch"] not in self.progress.lost]
        return [Place(record["epoch"], 0) for record in sorted(kept, key=key)]

    def note_skipped(self) -> None:
        """Collect the names of the bad samples that any rank has skipped. Every rank calls this."""
        everywhere = set().union(*self.world.gather(self.skipped))
        self.progress.skipped = sorted(everywhere.union(self.progress.skipped))

    def report_step(self, loss: float, rate: float, norm: torch.Tensor | None) -> None:
        """Show and log the last optimizer step: its loss, its learning rate, and its gradient's norm (a scalar)."""
        progress = self.progress
        self.checkpoints.poll()
        self.times.step(self.lock.training.global_batch_size, self.engine.skipped_steps)
        self.reporter.step(progress.epoch, progress.step, loss, rate)
        if self.world.main and progress.step % self.lock.logging.log_every_steps == 0:
            values = {"train/step_loss": loss, "train/learning_rate": rate, **self.times.interval()}
            values |= allocated(self.world.device)
            if norm is not None:
                values["train/gradient_norm"] = float(norm)
            self.tracker.log(values, progress.epoch * self.steps + progress.step)

    def end_epoch(self, checked: Evaluation) -> None:
        """Record the trained and evaluated epoch, and save a checkpoint if one is due."""
        progress, lock = self.progress, self.lock
        done = (progress.epoch + 1) * self.steps
        record: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss_sum / self.steps,
            "val_loss": checked.loss,
            **{f"val_{name}": value for name, value in checked.scores.items()},
            "learning_rate": learning_rate(lock.training, done - 1, self.steps),
            "seconds": progress.epoch_seconds,
        }
        scores = {f"val/{name}": value for name, value in checked.scores.items()}
        losses = {"train/loss": record["train_loss"], "val/loss": checked.loss}
        self.tracker.log({**losses, **scores, "epoch_seconds": record["seconds"]}, done)
        progress.history.append(record)
        if self.world.main:
            write_epochs(self.output_dir, self.lock_sha256, progress.history)
        progress.epoch += 1
        progress.step, progress.loss_sum, progress.epoch_seconds = 0, 0.0, 0.0
        self._note_lost()
        best = [place.epoch for place in self.ranking()[: lock.checkpoint.keep_best]]
        progress.best_epoch = best[0]
        due = progress.epoch % lock.checkpoint.every_epochs == 0 or self.trained
        if lock.checkpoint.every_steps and done % lock.checkpoint.every_steps == 0:
            due = True
        if due or progress.epoch in best:
            self.save()
        self.tracker.flush()
        self.reporter.epoch(record, progress.best_epoch == progress.epoch)
        self.callbacks.epoch(self, record)


def without_improvement(values: Sequence[float | None], sign: float, min_delta: float) -> int:
    """Return the number of last values that are not an improvement of the best before them by more than `min_delta`.

    `sign` is 1 if larger is better, else -1. A value that is missing or not finite is not an improvement.
    """
    best, since = -math.inf, 0
    for value in values:
        signed = sign * value if value is not None and math.isfinite(value) else -math.inf
        improved = signed > best + min_delta
        best, since = (signed, 0) if improved else (best, since + 1)
    return since
