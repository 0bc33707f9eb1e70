"""The end of a run: the score on the test split, the baseline, pictures and results.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ratc_runtime import memory, surroundings
from ratc_runtime.errors import warn
from ratc_runtime.evaluate import Evaluation, evaluate
from ratc_runtime.progress import say_scores
from ratc_runtime.results import RESULTS_FILE, write_results
from ratc_runtime.run import Run
from ratc_runtime.tasks import METRICS

OVERLAYS = 4


def stop(run: Run) -> int:
    """Close a run that was asked to stop and has saved; return the exit status."""
    progress = run.progress
    if run.world.main:
        write_results(run.output_dir, {**_common(run), "status": "stopped"})
        run.tracker.close("KILLED", [run.output_dir / RESULTS_FILE])
    run.stop.saved()
    run.stop.done()
    run.reporter.close()
    asked = f" ({run.stop.reason})" if run.stop.reason else ""
    run.reporter.say(
        f"stopped as asked{asked} after epoch {progress.epoch} of {run.lock.training.epochs}, step {progress.step}"
        f" of {run.steps}; saved in {run.checkpoints.path('last')}\nrun the same command again to continue"
    )
    return 0


def finish(run: Run) -> int:
    """Score the best checkpoint on the test split, draw, and write the results; return the exit status."""
    if run.progress.best_epoch is not None and run.checkpoints.load("best") is None and run.world.main:
        # It could not be written (a full disk said so); the last weights are scored instead.
        warn("there is no best checkpoint; the last weights are scored")
    length = len(run.test)
    chosen = frozenset((2 * i + 1) * length // (2 * OVERLAYS) for i in range(OVERLAYS))
    test = evaluate(run.engine, run.test, run.criterion, run.task, chosen)
    baseline = run.task.baseline(run.train.dataset, run.test.dataset, run.world)
    use = memory.measure(run.world)
    if not run.world.main:
        return 0
    run.stop.done()
    # The prediction is of the lock's micro-batch, not of a smaller one.
    common, prediction = _common(run), None if run.split.reductions else memory.predicted(run.lock)
    results = {
        **common,
        "memory": memory.record(use, prediction, common["samples_per_second"]),
        "status": "finished",
        "test": {**test.scores, "loss": test.loss, "samples": test.samples},
        "baseline": baseline,
    }
    drawn = _draw(run, test)
    # Last: where it says finished, everything else is there.
    write_results(run.output_dir, results)
    last_step = run.lock.training.epochs * run.steps
    scores = {f"test/{name}": value for name, value in test.scores.items()}
    trivial = {f"test/baseline_{name}": value for name, value in baseline.items()}
    run.tracker.log({**scores, "test/loss": test.loss, **trivial}, last_step)
    run.tracker.log({name: value for name, value in memory.metrics(use).items() if value is not None}, last_step)
    run.tracker.close("FINISHED", [run.output_dir / RESULTS_FILE, *drawn])
    labels = run.reporter.labels
    compared = f"; the trivial baseline has {say_scores(baseline, labels)}" if baseline else ""
    run.reporter.say(
        f"test {say_scores(test.scores, labels)}  ({test.samples} samples, best epoch"
        f" {run.progress.best_epoch}){compared}\n"
        f"{memory.describe(use, prediction)}\nresults in {run.output_dir}"
    )
    off = memory.deviation(use, prediction)
    if off is not None:
        warn(off)
    return 0


def _common(run: Run) -> dict[str, Any]:
    progress = run.progress
    samples = (progress.epoch * run.steps + progress.step) * run.lock.training.global_batch_size
    skipped = sorted(run.train.skipped | run.val.skipped | run.test.skipped)
    return {
        "experiment_name": run.lock.experiment_name,
        "lock_sha256": run.lock_sha256,
        "fingerprint": run.lock.fingerprint(),
        "batch": run.split.record(),
        "job": surroundings.record(os.environ),
        "epochs": progress.history,
        "best_epoch": progress.best_epoch,
        "parameters": run.parameters,
        "wall_seconds": progress.total_seconds,
        "train_seconds": progress.train_seconds,
        "samples_per_second": samples / progress.train_seconds if progress.train_seconds else 0.0,
        "skipped_samples": skipped,
    }


def _draw(run: Run, test: Evaluation) -> list[Path]:
    """Draw curves and overlays; where that fails it costs the pictures, not the results."""
    curves, overlays = run.output_dir / "curves.png", run.output_dir / "overlays"
    try:
        from ratc_runtime.figures import draw_curves

        metrics = METRICS[run.lock.task_type]
        draw_curves(curves, run.progress.history, metrics, run.lock.experiment_name, run.progress.best_epoch)
        run.task.draw(overlays, test.pictures)
    except (OSError, ImportError, ValueError) as error:
        warn(f"pictures not drawn: {type(error).__name__}: {error}")
        return []
    return [curves, overlays]
