"""Scores of a checkpoint on one split: `python -m ratc_runtime evaluate CHECKPOINT --split test`.

Data, loss and scores are those of training, in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ratc_runtime import inference
from ratc_runtime.config import option_types
from ratc_runtime.data import pytree
from ratc_runtime.data.folders import SPLITS
from ratc_runtime.data.joint import open_data_set, open_evaluation
from ratc_runtime.data.whole import WholeImages
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding, say
from ratc_runtime.inference import OpenCheckpoint
from ratc_runtime.output.progress import say_scores
from ratc_runtime.output.results import finite, unwritable
from ratc_runtime.tasks.own_scores import build_scores
from ratc_runtime.tasks.segmentation.sliding import slide
from ratc_runtime.training.evaluation import Evaluation, evaluate

#: Samples that are drawn.
_PICTURES = 4


def open_split(model: OpenCheckpoint, split: str, data_dir: Path, also: Sequence[str] = ()) -> Any:
    """Return a split of the lock's data set, or of another folder for it. `also` are more names of code that is run.

    Raises R506 and R536 to R541 for the data, R509 if the data set cannot be built, R584 if code is untrusted.
    """
    lock = model.lock
    sets = [part.data.dataset for part in (lock.tasks or {}).values()] or [lock.data.dataset]
    inference.check_trust([*also, *sets], model.path, model.trust)
    dataset = open_data_set(lock, data_dir, split)
    model.task.opened({split: dataset})
    return dataset


def outputs_of(model: OpenCheckpoint, images: Any) -> Any:
    """Return the outputs for a batch, on the host."""
    batch = pytree.to_device(images, model.engine.world.device)
    return pytree.apply(lambda tensor: tensor.cpu(), model.engine.predict(batch))


def check_slides(model: OpenCheckpoint) -> None:
    """Raise R542 unless the outputs of patches can be put together: they are those of one task, segmentation."""
    if model.lock.task_type != "segmentation" or model.task.parts:
        raise RuntimeFinding("R542", "only patches of segmentation can be put together", help="leave --overlap out")


def score(
    model: OpenCheckpoint, split: str, data_dir: Path, pictures: Path | None = None, overlap: float | None = None
) -> tuple[Evaluation, list[Path]]:
    """Return the scores on a split, and the overlays of a few samples. With `overlap`, from 0 to below 1, a sample is a
    whole picture or volume in the resolution of its files, predicted in patches that cover that share of one another.

    Raises R506 and R536 to R541 for the data, R509 if data set or loss cannot be built, R584 if they are untrusted
    code, R510 if pictures cannot be written, R542 if patches cannot be put together.
    """
    lock, task = model.lock, model.task
    if overlap is not None:
        check_slides(model)
    parts = list((lock.tasks or {}).values())
    losses = [part.loss.name for part in parts] or [lock.training.loss.name]
    dataset = open_split(model, split, data_dir, [*losses, *lock.evaluation.scores.values()])
    task.own_scores = build_scores(lock.evaluation.scores)
    criterion = task.loss()
    engine: Any = model.engine
    if overlap is not None:
        dataset, engine = WholeImages(dataset), _Sliding(model, overlap)
        lock = lock.replace(training=lock.training.replace(micro_batch_size=1))  # they differ in size
    move = getattr(criterion, "to", None)
    if callable(move):
        move(engine.world.device)
    loader = open_evaluation(dataset, lock, 0, task)
    found = evaluate(engine, loader, criterion, task, _PICTURES if pictures is not None else 0)
    try:
        return found, task.draw(pictures, found.pictures) if pictures is not None else []
    except OSError as error:
        raise unwritable(pictures or Path(), error) from None


class _Sliding:
    """The engine of whole images: its model predicts patches on its device, all else is on the host."""

    def __init__(self, model: OpenCheckpoint, overlap: float) -> None:
        self.world = World(0, 1, torch.device("cpu"))
        self._model, self._overlap = model, overlap

    def evaluate(self) -> None:
        """Switch to evaluation mode."""
        self._model.engine.evaluate()

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, 1 or K, ...) of one whole image (1, C, ...)."""
        return slide(partial(outputs_of, self._model), image[0], self._model.lock, self._overlap)


def _record(
    model: OpenCheckpoint, split: str, data_dir: Path, found: Evaluation, overlap: float | None
) -> dict[str, Any]:
    return {
        "checkpoint": str(model.path),
        "epoch": model.epoch,
        "step": model.step,
        "experiment_name": model.lock.experiment_name,
        "fingerprint": model.fingerprint,
        "precision": model.lock.training.precision,
        "device": str(model.engine.world.device),
        "data_dir": str(data_dir),
        "split": split,
        **({} if overlap is None else {"overlap": overlap}),
        "samples": found.samples,
        "scores": {**found.scores, "loss": found.loss},
    }


def _write(path: Path, record: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(finite(record), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from None


def _run(arguments: argparse.Namespace) -> None:
    model = inference.open_checkpoint(
        arguments.checkpoint, arguments.lock, arguments.device, arguments.batch_size, arguments.trust
    )
    data_dir = arguments.data_dir or Path(os.environ.get("RAT_DATA_DIR") or model.lock.data.data_dir)
    found, drawn = score(model, arguments.split, data_dir, arguments.pictures, arguments.overlap)
    if arguments.output is not None:
        _write(arguments.output, _record(model, arguments.split, data_dir, found, arguments.overlap))
    labels = {name: metric.label for name, metric in model.task.metrics.items()}
    said = say_scores({**found.scores, "loss": found.loss}, labels or {"loss": "loss"})
    say(f"{arguments.split} {said}  ({found.samples} samples, {model.path})")
    for line in [*found.remarks(model.task), *(f"written: {path}" for path in drawn)]:
        say(line)
    if arguments.output is not None:
        say(f"written: {arguments.output}")


def main(argv: list[str] | None = None) -> int:
    """Score a checkpoint and print the result; return 0, or 1 after a finding."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime evaluate", description="Score a checkpoint on one split of the data."
    )
    inference.add_arguments(parser)
    parser.add_argument("--split", choices=SPLITS, default="test", help="split of the data to score (default: test)")
    parser.add_argument(
        "--data-dir", type=Path, help="folder of the data (default: RAT_DATA_DIR, or the folder in the lock)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the scores as JSON, too")
    parser.add_argument(
        "--overlap",
        type=option_types.share,
        help="score whole pictures and volumes of segmentation in the resolution of their files, predicted in patches "
        "of the training's size, each of which covers this share of the next one (0 to below 1)",
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw a few samples with truth and prediction")
    try:
        _run(parser.parse_args(argv))
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
