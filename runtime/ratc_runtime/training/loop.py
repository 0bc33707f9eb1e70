"""The training loop, from the lock to results.json, top to bottom."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratc_runtime import debug, preflight
from ratc_runtime.config import allocator
from ratc_runtime.distributed import launch_environment, watchdog
from ratc_runtime.distributed.phases import phase
from ratc_runtime.errors import RuntimeFinding, say, warn_of
from ratc_runtime.output.results import refuse_links
from ratc_runtime.training import compiling, failures

if TYPE_CHECKING:
    import torch

    from ratc_runtime.config.lock import Lock
    from ratc_runtime.data.loading import Batch
    from ratc_runtime.debug.inspect import Inspector
    from ratc_runtime.training.components import Own
    from ratc_runtime.training.run import Run


def prepare_environment(lock: Lock) -> None:
    """Set the environment variables that torch, Accelerate and DeepSpeed read at import, from the lock alone."""
    if lock.parallel.threads_per_process is not None:
        os.environ["OMP_NUM_THREADS"] = str(lock.parallel.threads_per_process)
    if lock.hardware.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Accelerate takes the variable to mean "no DeepSpeed", and without it does not join CPU processes.
    os.environ.pop("ACCELERATE_USE_CPU", None)
    if lock.hardware.device == "cpu" and not lock.engine.deepspeed:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if not lock.engine.deepspeed:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    os.environ.pop("ACCELERATE_USE_PARALLELISM_CONFIG", None)  # the mesh is the lock's
    if lock.fsdp2 is None:
        os.environ.pop("ACCELERATE_USE_FSDP", None)
    allocator.prepare(lock, os.environ)
    if lock.debug:
        debug.prepare(os.environ, lock.parallel.backend)


def take_place() -> None:
    """Set rank and world size for torch from any launcher's variables. Raises R502 if these are inconsistent."""
    try:
        launch_environment.set_torchrun_variables(os.environ)
        launch_environment.detect(os.environ)
    except ValueError as error:
        raise RuntimeFinding(
            "R502",
            "the launcher's variables make no sense",
            str(error),
            f"start training with the compiled run.sh; if no launcher is there, {launch_environment.UNSET}",
            everywhere=launch_environment.is_started(os.environ),
        ) from None


def start(lock: Lock, lock_path: Path, data_dir: Path, output_dir: Path, fresh: bool, own: Own, began: float) -> int:
    """Train under the watchdog; return the exit status.

    Raises R510 if a link in the output folder leads out of it, R565 if the run's own code exits the process.
    """
    refuse_links(output_dir)
    dog, failure = watchdog.begin(lock, output_dir, int(os.environ.get("RANK", "0"))), ""
    try:
        try:
            return start_watched(lock, lock_path, data_dir, output_dir, fresh, own, began, dog)
        except SystemExit as error:
            # A launcher would take status 0 for a finished run.
            raise RuntimeFinding(
                "R565",
                f"your own code ended the process, with {error.code!r:.60}",
                "".join(traceback.format_tb(error.__traceback__)[-1:]).strip(),
                "raise an exception if something is wrong; leave exit() to scripts",
                everywhere=False,
            ) from None
    except Exception as error:
        finding = failures.as_finding(error) or failures.unexpected(error)
        # A rank that lost another process is not the cause of the failure.
        failure = "" if finding.code == "R514" else f"{finding.code}, {finding.message}"
        raise
    finally:
        if dog is not None:
            dog.close(failure)


def start_watched(
    lock: Lock,
    lock_path: Path,
    data_dir: Path,
    output_dir: Path,
    fresh: bool,
    own: Own,
    began: float,
    dog: watchdog.Watchdog | None,
) -> int:
    """Open the run and train it, or report that it is finished; return the exit status."""
    from ratc_runtime.config.lock import lock_digest
    from ratc_runtime.data import record
    from ratc_runtime.output.results import confirm
    from ratc_runtime.training.open_run import is_finished, open_run

    main_process = os.environ.get("RANK", "0") == "0"
    if main_process:
        preflight.warn_of_variables(os.environ)
    if is_finished(lock, output_dir, fresh):
        if main_process:
            confirm(output_dir, lock_digest(lock_path))
            known = record.read(output_dir)
            if known is not None and (changed := record.changed_files(known, data_dir)):
                warn_of(record.changed_finding(changed, f"{output_dir} was finished"))
            say(f"already finished: {output_dir / 'results.json'}; --fresh trains again")
            if not data_dir.is_dir():
                say(f"its data is no longer needed, and {data_dir} does not exist")
        return 0
    compiling.prepare(lock, output_dir, os.environ)
    run = open_run(lock, lock_path, data_dir, output_dir, fresh, own, began)
    if dog is not None:
        dog.follow(lambda: place(run))
    try:
        run.callbacks.start(run)
        return train(run)
    except BaseException:
        run.reporter.close()
        run.tracker.close("FAILED", [])
        raise
    finally:
        for loader in run.loaders:
            loader.close()
        run.checkpoints.close()


def train(run: Run) -> int:
    """Train to the end or to a stop request; return the exit status.

    A single process that runs out of memory continues from the last step boundary with a smaller micro-batch. Raises
    R506 for a bad sample, R507 for a loss that is not finite, R511 and R512 for memory, R575 for a normalisation of
    one value.
    """
    from ratc_runtime.models import normalisation
    from ratc_runtime.training import out_of_memory

    inspector = inspect(run) if run.lock.debug else None
    while True:
        try:
            return train_on(run, inspector)
        except Exception as error:
            text = out_of_memory.explain(error, run.world.device)
            if text is None:
                finding = normalisation.explain(error, run.engine.module)
                if finding is None:
                    raise
                raise finding from None
        # Past the except clause, where the failed step's tensors are gone with the traceback.
        out_of_memory.give_back(run.world.device)
        recover_from_out_of_memory(run, text)


def place(run: Run) -> str:
    """Return the progress of a run in the words of a finding."""
    if run.trained:
        return "in the evaluation of the test split"
    if run.progress.step == run.steps:
        return f"in the evaluation of epoch {run.progress.epoch + 1}"
    return f"in epoch {run.progress.epoch + 1}, step {run.progress.step + 1}"


def recover_from_out_of_memory(run: Run, error: str) -> None:
    """Take a smaller micro-batch after running out of memory, or end with R511 or R512 if that is impossible.

    It is impossible with several ranks, which already wait in a collective, and with DeepSpeed, whose buffers belong to
    the step in progress. The reduction is then recorded for the next start.
    """
    from ratc_runtime.training import out_of_memory

    run.reporter.close()
    when, reason = place(run), ""
    if run.world.size > 1:
        when, reason = f"{when} on rank {run.world.rank}", "the other processes cannot be asked in the middle of a step"
    elif run.engine.deepspeed:
        reason = "DeepSpeed cannot take back a step that it began"
    elif run.engine.updating:
        reason = "some weights have been updated and some not"
    if not reason:
        run.reduce_micro_batch(when, error)
        return
    run.split.reduce(when, run.world.rank, error, everywhere=False)
    run.split.write()
    run.checkpoints.finish_write()
    checkpoint = run.checkpoints.newest()
    raise out_of_memory.ended(when, error, reason, run.split.text, run.split.path, checkpoint)


@phase("training")
def train_on(run: Run, inspector: Inspector | None) -> int:
    """Train from the run's progress; return the exit status."""
    from ratc_runtime.extras.pruning import Pruning
    from ratc_runtime.training import finalize
    from ratc_runtime.training.evaluation import evaluate
    from ratc_runtime.training.lr_schedule import learning_rate
    from ratc_runtime.training.step import training_step

    pruning = Pruning(run.lock, run.engine.module)
    training, progress, engine = run.lock.training, run.progress, run.engine
    engine.verify(run.lock)
    run.reporter.say(run.describe())
    while not run.trained:
        run.train.order.epoch, run.train.order.first_step = progress.epoch, progress.step
        run.reporter.start_epoch(progress.epoch, progress.step)
        pruning.begin(progress.epoch, progress.step)
        batches = run.times.waiting(run.train)
        engine.train()
        run.times.lap("other")
        run.times.start_interval()
        while progress.step < run.steps:
            done = progress.epoch * run.steps + progress.step
            rate = learning_rate(training, done, run.steps)
            names: list[list[str]] = []
            step = training_step if inspector is None else inspector.around(names)
            with pruning.kept():
                result = step(
                    engine,
                    run.criterion,
                    feed(run, batches, names),
                    training.gradient_accumulation_steps,
                    rate,
                    training.gradient_clipping,
                    run.train.order.weights(progress.step),
                )
            loss, asked_to_stop = agree(run, result.losses, names)
            progress.step += 1
            progress.loss_sum += loss
            run.times.lap("training")
            run.report_step(loss, rate, result.gradient_norm)
            run.callbacks.step(run, loss)
            if asked_to_stop:
                return finalize.stop(run)
            run.save_if_due()
        if progress.epoch + 1 < training.epochs:
            run.train.begin(progress.epoch + 1)  # while the split is scored
        checked = evaluate(engine, run.val, run.criterion, run.task)
        run.times.lap("evaluation")
        run.end_epoch(checked)
        if agree_to_stop(run):
            return finalize.stop(run)
    return finalize.finish(run)


def inspect(run: Run) -> Inspector:
    """Return the inspector of the steps of a debug run."""
    from ratc_runtime.debug.inspect import Inspector

    return Inspector(run)


def feed(run: Run, batches: Iterator[Batch], names: list[list[str]]) -> Iterator[tuple[Any, Any]]:
    """Yield the micro-batches of one step on the device, and append the names of their samples to `names`.

    Raises R503 if a micro-batch from the loader has another size than the lock's, or than the last step's share.
    """
    from ratc_runtime.data import pytree

    training = run.lock.training
    full = [training.micro_batch_size] * training.gradient_accumulation_steps
    sizes = run.train.order.last_sizes(run.progress.step) or full
    for expected, batch in zip(sizes, batches, strict=False):
        if len(batch.names) != max(1, expected):
            raise RuntimeFinding(
                "R503", f"the loader gave a micro-batch of {len(batch.names)}, the lock says {expected}"
            )
        names.append(batch.names)
        yield pytree.to_device(batch.image, run.world.device), pytree.to_device(batch.target, run.world.device)


def agree(run: Run, losses: torch.Tensor, names: list[list[str]]) -> tuple[float, bool]:
    """Return the step's mean loss over ranks, and whether any rank has a stop request; one all-reduce.

    `losses` are those of this rank's micro-batches (A,), `names` the samples of each.

    Raises R507 on every rank if the loss of any micro-batch is not finite.
    """
    import torch

    finite = torch.isfinite(losses)
    # Put together on the device: this is the only place in a step where the host waits for it.
    pending = torch.full((), float(run.stop.pending()), dtype=torch.float64, device=losses.device)
    local = torch.stack([pending, (~finite).sum().double(), losses.double().mean()])
    stopping, broken, loss = run.world.sum(local).tolist()
    if broken:
        bad = [name for good, group in zip(finite.tolist(), names, strict=True) if not good for name in group]
        by_rank = run.world.gather(bad)
        everywhere = [name for part in by_rank for name in part]
        where = ", ".join(f"rank {rank}" for rank, part in enumerate(by_rank) if part)
        run.checkpoints.finish_write()
        kept = run.checkpoints.newest()
        raise RuntimeFinding(
            "R507",
            f"the loss is not finite in epoch {run.progress.epoch + 1}, step {run.progress.step + 1}"
            + (f", on {where}" if run.world.size > 1 else ""),
            f"samples of the batch: {', '.join(everywhere)}\n"
            + (f"the last good checkpoint is kept: {kept}" if kept else "no checkpoint was made before"),
            "look at these samples; lower training.learning_rate, or set training.gradient_clipping",
        )
    return loss / run.world.size, stopping > 0


def agree_to_stop(run: Run) -> bool:
    """Return whether any rank received a stop request during the evaluation."""
    import torch

    return bool(run.world.sum(torch.tensor([float(run.stop.pending())])).item() > 0)
