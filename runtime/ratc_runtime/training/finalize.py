"""The end of a run: the score on the test split, the baseline, pictures and results.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ratc_runtime.distributed import launch_environment
from ratc_runtime.distributed.phases import phase
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.health import record as health
from ratc_runtime.output import memory_report, time_accounting
from ratc_runtime.output.progress import say_score, say_scores
from ratc_runtime.output.results import RESULTS_FILE, write_results
from ratc_runtime.output.sizes import counted
from ratc_runtime.training.evaluation import Evaluation, evaluate
from ratc_runtime.training.run import Run

OVERLAYS = 4


@phase("finishing")
def stop(run: Run) -> int:
    """Save and close a run after a stop request, and return the exit status. Raises R519 if it cannot be saved."""
    progress = run.progress
    if not run.save(wait=True):
        run.stop.done()
        raise RuntimeFinding(
            "R519",
            f"asked to stop after epoch {progress.epoch}, step {progress.step}, and the state cannot be saved",
            "the warning above says why; older checkpoints are kept",
            "check the disk, then run the same command again: it continues from the newest checkpoint",
        )
    if run.world.main:
        write_results(run.output_dir, {**_common(run), "status": "stopped"})
        run.tracker.close("KILLED", [run.output_dir / RESULTS_FILE])
    run.world.barrier()  # no rank goes before the file is there
    run.stop.saved()
    run.stop.done()
    run.reporter.close()
    asked = f" ({run.stop.reason})" if run.stop.reason else ""
    run.reporter.say(
        f"stopped as asked{asked} after epoch {progress.epoch} of {run.lock.training.epochs}, step {progress.step}"
        f" of {run.steps}; saved in {run.checkpoints.newest()}\nrun the same command again to continue"
    )
    return 0


@phase("finishing")
def finish(run: Run) -> int:
    """Score the best checkpoint on the test split, draw pictures and write the results. Return the exit status.

    Raises R562 if no checkpoint of the run could be written.
    """
    best = run.checkpoints.load_best(run.ranking())
    run.progress.best_epoch = best.epoch if best is not None else None
    if best is None:
        # It could not be written (a full disk said so): perhaps it can be now.
        if not run.save(wait=True):
            run.stop.done()
            raise RuntimeFinding(
                "R562",
                f"all {run.progress.epoch} epochs are trained, and no checkpoint of them could be written",
                "the warnings above say why; without a checkpoint nothing of the training is left",
                f"make room in {run.output_dir}, or name another folder with RAT_OUTPUT_DIR, and train again",
            )
        if run.world.main:
            warn("there is no best checkpoint; the last weights are scored")
    test, baseline = _test(run)
    use = memory_report.measure(run.world)
    run.note_skipped()
    results: dict[str, Any] = {}
    if run.world.main:
        run.stop.done()
        results = _write(run, test, baseline, use)
    # Every rank's callbacks and trainer get them, and no rank goes before the file is there.
    results = run.world.gather(results)[0]
    run.callbacks.finish(run, results)
    return 0


def _test(run: Run) -> tuple[Evaluation | None, dict[str, float]]:
    """Score model and trivial baseline on the test split, if there is one; every rank calls this."""
    if run.test is None:
        return None, {}
    test = evaluate(run.engine, run.test, run.criterion, run.task, OVERLAYS)
    with phase("baseline"):
        baseline = run.task.baseline(run.train.dataset, run.test.dataset, run.world)
    run.times.lap("evaluation")
    return test, baseline


def _write(
    run: Run, test: Evaluation | None, baseline: dict[str, float], use: memory_report.MemoryUse
) -> dict[str, Any]:
    """Write, log and print the results, and return them."""
    early = run.lock.training.early_stopping
    if run.ended_early and early is not None:
        run.reporter.say(
            f"ended after epoch {run.progress.epoch} of {run.lock.training.epochs}: {early.metric} did not improve in"
            f" {early.patience} epochs"
        )
    drawn = _draw(run, test.pictures if test is not None else [])
    run.times.lap("other")
    # The prediction is of the lock's micro-batch, not of a smaller one.
    common, prediction = _common(run), None if run.split.reductions else memory_report.predicted(run.lock)
    results = {
        **common,
        "memory": memory_report.record(use, prediction, common["samples_per_second"]),
        "status": "finished",
        "ended_by": "early_stopping" if run.ended_early else "epochs",
        "finished_locks": [run.lock_digest],
    }
    logged: dict[str, float | None] = dict(memory_report.metrics(use))
    if test is not None:
        scored = {**test.scores, "loss": test.loss}
        results |= {"test": {**scored, "samples": test.samples}, "baseline": baseline}
        logged |= {f"test/{name}": value for name, value in scored.items()}
        logged |= {f"test/baseline_{name}": value for name, value in baseline.items()}
    # Last: if it says finished, everything else is there.
    write_results(run.output_dir, results)
    run.tracker.log(logged, run.progress.epoch * run.steps)
    run.tracker.close("FINISHED", [run.output_dir / RESULTS_FILE, *drawn])
    # Trackers have taken their time since the results were written.
    run.times.lap("other")
    told = {**results, "account": _time_record(run)}
    table = time_accounting.table(_rows(run, told, memory_report.describe(use, prediction)))
    run.reporter.say(f"{_summary(run, test, baseline)}\n{table}")
    for said in run.cache.warnings():
        warn(said)
    off = memory_report.deviation(use, prediction)
    if off is not None:
        warn(off)
    return results


def _summary(run: Run, test: Evaluation | None, baseline: dict[str, float]) -> str:
    labels, best = run.reporter.labels, run.progress.best_epoch
    if test is None:
        return f"finished; best epoch {best}, scored on the validation split only"
    compared = f"; the trivial baseline has {say_scores(baseline, labels)}" if baseline else ""
    scored = say_scores({**test.scores, "loss": test.loss}, labels or {"loss": "loss"})
    lines = [
        f"test {scored}  ({counted(test.samples, 'sample')}, best epoch {best}){compared}",
        *test.remarks(run.task),
    ]
    return "\n".join(lines)


def _rows(run: Run, results: dict[str, Any], memory_used: str) -> list[tuple[str, str]]:
    """Return the rows of the final table: the cost of the run, and the paths of its files."""
    rows = time_accounting.rows(results["account"], results["starts"], len(results["skipped_samples"]))
    best = run.progress.best_epoch
    scores = run.progress.history[best - 1] if best else {}
    said = "  ".join(
        f"{key.replace('_', ' ')} {say_score(value)}" for key, value in scores.items() if key.startswith("val_")
    )
    weights = run.checkpoints.best(best) or run.checkpoints.newest()
    files = [path for path in (weights, run.output_dir / RESULTS_FILE) if path is not None]
    return [
        ("best epoch", f"{best} of {len(run.progress.history)}: {said}" if best else "none was saved"),
        *rows,
        ("peak memory", memory_used.removeprefix("peak memory ")),
        ("written", "\n".join(map(str, files))),
        ("tracked", "\n".join(run.tracker.describe()) or "nowhere: the spec turns all of `logging` off"),
    ]


def _time_record(run: Run) -> dict[str, Any]:
    steps = run.progress.epoch * run.steps + run.progress.step
    return run.times.record(steps, steps * run.lock.training.global_batch_size)


def _common(run: Run) -> dict[str, Any]:
    progress, account = run.progress, _time_record(run)
    return {
        "experiment_name": run.lock.experiment_name,
        "lock_sha256": run.lock_sha256,
        "lock": run.lock.model_dump(mode="json"),
        "fingerprint": run.lock.fingerprint(),
        "own_code": run.lock.code(),
        "batch": run.split.record(),
        "world_size": run.world.size,
        "job": launch_environment.record(os.environ),
        "health": health.summary(run.output_dir),
        "epochs": progress.history,
        "best_epoch": progress.best_epoch,
        "parameters": run.parameters,
        "wall_seconds": progress.total_seconds,
        "train_seconds": progress.train_seconds,
        "samples_per_second": account["samples_per_second"],
        "account": account,
        "starts": run.history.record() if run.history else {},
        "source": run.sources,
        "skipped_samples": progress.skipped,
        "data_changes": progress.data_changes,
        "cache": run.cache.record(),
    }


def _draw(run: Run, pictures: list[Any]) -> list[Path]:
    """Draw curves and overlays. A failure gives a warning and no pictures, and does not affect the results."""
    curves, overlays = run.output_dir / "curves.png", run.output_dir / "overlays"
    try:
        from ratc_runtime.output.plots import draw_curves

        # One axis from 0 to 1: distances have no place there.
        shown = {name: metric for name, metric in run.task.metrics.items() if metric.larger_is_better}
        draw_curves(curves, run.progress.history, shown, run.lock.experiment_name, run.progress.best_epoch)
        drawn = run.task.draw(overlays, pictures) if pictures else []
    except (OSError, ImportError, ValueError) as error:
        warn(f"pictures not drawn: {type(error).__name__}: {error}")
        return []
    return [curves, overlays] if drawn else [curves]
