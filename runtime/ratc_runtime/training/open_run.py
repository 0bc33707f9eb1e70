"""A run opened from its lock: engine, data, loss and checkpoints, put together."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ratc_runtime import debug
from ratc_runtime.callbacks import Callbacks
from ratc_runtime.checkpoint import Checkpoints
from ratc_runtime.checkpoint.header import unusable
from ratc_runtime.checks import first_weights
from ratc_runtime.config import allocator
from ratc_runtime.config.lock import Lock, lock_digest
from ratc_runtime.config.yaml_file import sha256_of
from ratc_runtime.data import record
from ratc_runtime.data.cache import open_cache, wrap
from ratc_runtime.data.folders import first_of
from ratc_runtime.data.joint import flat, joined, open_evaluation
from ratc_runtime.data.loading import is_foreign, left_out, train_loader
from ratc_runtime.data.survey import first_look
from ratc_runtime.distributed.phases import phase
from ratc_runtime.distributed.stop import StopRequest
from ratc_runtime.distributed.world import World
from ratc_runtime.engine import make_engine
from ratc_runtime.errors import RuntimeFinding, warn, warn_of
from ratc_runtime.models import allowed
from ratc_runtime.output import provenance
from ratc_runtime.output.folder_lock import FolderLock
from ratc_runtime.output.memory_report import start_measuring
from ratc_runtime.output.progress import Reporter
from ratc_runtime.output.results import prepare_output, read_results, set_aside
from ratc_runtime.output.run_history import RunHistory
from ratc_runtime.tasks import names
from ratc_runtime.tasks.base import Task
from ratc_runtime.tracking import Tracker
from ratc_runtime.training import batch_norm, compiling, memory_rehearsal
from ratc_runtime.training.components import Own, make_parts, open_data
from ratc_runtime.training.micro_batch import Split
from ratc_runtime.training.run import Progress, Run


def seed_everything(lock: Lock, rank: int) -> None:
    """Seed Python, NumPy and torch, differently on each rank, so that dropout differs between them."""
    seed = (lock.seed + rank) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def is_finished(lock: Lock, output_dir: Path, fresh: bool) -> bool:
    """Return whether the output folder holds finished results of this lock that need not be made again.

    Results of other own code do not count, unless the lock only warns about changed code.
    """
    if fresh or lock.checkpoint.resume == "never":
        return False
    results = read_results(output_dir)
    if results.get("status") != "finished" or results.get("fingerprint") != lock.fingerprint():
        return False
    moved = None not in (results.get("own_code"), lock.code()) and results["own_code"] != lock.code()
    if moved and lock.checkpoint.own_code == "warn":
        warn(f"your own code has changed since {output_dir} was finished")
    return not moved or lock.checkpoint.own_code == "warn"


@phase("opening")
def open_run(
    lock: Lock, lock_path: Path, data_dir: Path, output_dir: Path, fresh: bool, own: Own, started: float
) -> Run:
    """Build the parts that the lock names, except those in `own`, and load the last checkpoint, if any.

    `started` is the start time of the run's process, by `time.perf_counter`.

    The first start, and one with changed data, checks a few samples of each split. Raises RuntimeFinding: R502 to R506,
    R508 to R511, R517, R518, R536, R541, R552, R570, R571, R573, R575, R595 and R596.
    """
    folder_lock = FolderLock(output_dir)
    began, clock = time.perf_counter(), compiling.Clock(lock)
    if int(os.environ.get("RANK", "0")) == 0:
        prepare_output(output_dir)
        folder_lock.take(os.environ)
    with phase("loader"):
        datasets = open_data(lock, data_dir, own)
    if lock.debug:
        datasets = joined(debug.few(flat(datasets), lock))
    torch.backends.cuda.matmul.allow_tf32 = lock.training.tf32
    torch.backends.cudnn.allow_tf32 = lock.training.tf32
    # The same weights on every rank, before DDP or DeepSpeed would make them so.
    seed_everything(lock, 0)
    lock_sha256, from_scratch = sha256_of(lock_path), fresh or lock.checkpoint.resume == "never"
    split = Split(lock, lock_sha256, output_dir, from_scratch)
    weights = first_weights.check(lock, Path()) if first_weights.are_needed(lock, output_dir, from_scratch) else None
    parts = make_parts(lock, datasets, own, weights)
    model, task, criterion = parts.model, parts.task, parts.criterion
    # Counted here: ZeRO-3 leaves nothing of them in place.
    parameters = sum(p.numel() for p in model.parameters())
    engine = make_engine(split.lock, model, lock_path.resolve().parent, bool(split.reductions))
    world = engine.world
    allocator.check(lock, world.device)
    if split.follow(world, from_scratch):
        engine.set_split(split.lock)
    if isinstance(criterion, torch.nn.Module):
        criterion.to(world.device)
    seed_everything(lock, world.rank)
    checkpoints = Checkpoints(output_dir, engine, lock, folder_lock)
    if from_scratch:
        checkpoints.clear()
        if world.main:
            set_aside(output_dir)
    stop = StopRequest(output_dir, world.main)
    stop.listen()
    saved = checkpoints.load_last()
    progress = Progress(**saved) if saved is not None else Progress()
    progress.class_names = names.of_task(task)
    if checkpoints.extends:
        # Trackers keep the values of a run: a plan of its own is a run of its own to them.
        progress.tracking_id = None
        if world.main:
            set_aside(output_dir)
    other_data = _compare_data(datasets, data_dir, output_dir, world, progress if saved is not None else None)
    memory_rehearsal.fit_micro_batch(engine, criterion, task, split)
    start_measuring(world.device)
    lock = split.lock
    cache = open_cache(lock, flat(datasets), data_dir, output_dir, world, bool(own.datasets))
    datasets = joined(wrap(cache, flat(datasets), is_foreign(lock)))
    if saved is None or other_data:
        with phase("loader"):
            first_look(flat(datasets), task, world, is_foreign(lock), lock.data.num_workers > 0)
    train = train_loader(datasets["train"], lock, world.rank, task.collate)
    steps = train.order.steps
    if saved is not None and not other_data and progress.step > steps:
        raise unusable(checkpoints.folder, f"it says that {progress.step} steps of an epoch of {steps} are done")
    left = left_out(len(datasets["train"]), lock) if world.main else None
    if left is not None:
        warn_of(left)
    batch_norm.check_last_batch(engine, datasets["train"], train.order, lock.data.num_workers > 0)
    history, sources = None, {}
    if world.main:
        history = RunHistory(
            output_dir,
            lock.fingerprint(),
            from_scratch,
            progress.tracking_id,
            progress.epoch,
            progress.step,
            world.size,
        )
        if saved is None and len(history.all) > 1:
            warn(f"earlier starts of this run left no checkpoint in {output_dir}: training starts from the beginning")
        sources = provenance.of_run(lock, Path.cwd())
        imported = allowed.unrecorded(lock.own_code or {}, Path.cwd()) if own == Own() else []
        if imported:
            warn_of(_not_reviewed(imported))
    done = progress.epoch * steps + progress.step
    tracker = Tracker(split.reviewed, lock_path, output_dir, world.main, history.run_id if history else "", done)
    tracker.note(split.parameters())
    if history:
        tracker.tag({**provenance.tags(sources), **history.tags(str(checkpoints.newest()) if saved else None)})
    run = Run(
        lock=lock,
        split=split,
        lock_sha256=lock_sha256,
        lock_digest=lock_digest(lock_path),
        output_dir=output_dir,
        engine=engine,
        world=world,
        task=task,
        criterion=criterion,
        train=train,
        val=open_evaluation(datasets["val"], lock, world.rank, task),
        test=open_evaluation(datasets["test"], lock, world.rank, task) if "test" in datasets else None,
        steps=steps,
        parameters=parameters,
        checkpoints=checkpoints,
        progress=progress,
        stop=stop,
        reporter=_reporter(lock, task, world.main, steps),
        tracker=tracker,
        callbacks=Callbacks(parts.callbacks),
        cache=cache,
        compiling=clock,
        began_with=parts.began_with,
        history=history,
        sources=sources,
    )
    if saved is not None:
        checkpoints.clean_up(run.ranking())
    seconds = time.perf_counter() - began
    run.times.add("startup", began - started)
    run.times.add("setup", seconds)
    progress.total_seconds += seconds + began - started
    return run


def _not_reviewed(paths: Sequence[str]) -> RuntimeFinding:
    """Return R593: own modules of these paths were imported, and the lock does not record them."""
    return RuntimeFinding(
        "R593",
        f"code of your own was imported that the lock does not record, so changes of it are not noticed: "
        f"{first_of(paths)}",
    )


def _compare_data(
    datasets: Mapping[str, Any], data_dir: Path, output_dir: Path, world: World, progress: Progress | None
) -> bool:
    """Record the training data. For a continued run, report its changes and note them in its `progress`.

    Returns whether there are changes. Every rank calls this. If the training samples changed, an unfinished epoch
    begins again, because its steps do not belong to the new order.
    """
    told: tuple[list[str], bool] = [], False
    if world.main:
        with phase("loader"):
            now = record.describe(flat(datasets), data_dir, (output_dir, Path.cwd()))
        before = record.read(output_dir) if progress is not None else None
        found = record.changes(before, now) if before is not None else []
        others = before is not None and _trained_on(before) != _trained_on(now)
        told = found, others
        if found:
            warn_of(record.changed_finding(found, f"this run was started in {output_dir}"))
        if before is None or found:
            record.write(output_dir, now)
    found, others = world.gather(told)[0]
    if progress is not None and found:
        progress.data_changes.append({"epoch": progress.epoch, "step": progress.step, "changes": found})
        if others and progress.step:
            if world.main:
                warn(f"epoch {progress.epoch + 1} begins again: the order of its samples differs")
            progress.step, progress.loss_sum, progress.epoch_seconds = 0, 0.0, 0.0
    return bool(found)


def _trained_on(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a record for the training samples."""
    return {key: split for key, split in known["splits"].items() if key.partition("/")[0] == "train"}


def _reporter(lock: Lock, task: Task, main: bool, steps: int) -> Reporter:
    training, labels = lock.training, {name: metric.label for name, metric in task.metrics.items()}
    return Reporter(main, training.epochs, steps, training.global_batch_size, lock.logging.log_every_steps, labels)
