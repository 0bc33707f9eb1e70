"""A range test of the learning rate: `python -m ratc_runtime.extras.range_test LOCK -o FILE`.

It runs the lock's own step on its own data, in one process, with a rate that grows from step to step. The model is not
kept. Source: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ratc_runtime.config import option_types
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.sizes import counted

#: Weight of a new loss in the running mean, because steps see different samples. Chosen, not measured, as are the next
#: three.
NEW = 0.1
#: The test ends if the mean loss reaches this multiple of its minimum.
DIVERGED = 4.0
#: The least number of steps, and the least relative fall of the loss, for a suggestion.
FEWEST, LEAST_FALL = 10, 0.02
#: The largest suggestion, by the rate at which the mean loss is least (Smith: an order of magnitude below it).
SAFE = 0.1


class Point(NamedTuple):
    """One optimizer step: its learning rate, its loss, and the running mean of the losses."""

    rate: float
    loss: float
    mean: float


def alone(lock: Lock) -> Lock:
    """Return the lock for one process of plain torch, with the same global batch."""
    training = lock.training
    accumulation = -(-training.global_batch_size // training.micro_batch_size)
    return lock.replace(
        training=training.replace(
            gradient_accumulation_steps=accumulation,
            global_batch_size=accumulation * training.micro_batch_size,
            last_batch="drop",
            max_steps_per_epoch=None,
        ),
        engine=lock.engine.replace(use_accelerate=False, deepspeed=False, zero_stage=0, offload_optimizer=False),
        parallel=lock.parallel.replace(world_size=1, nodes=1, processes_per_node=1),
    )


def rates(low: float, high: float, steps: int) -> list[float]:
    """Return the rate of each step, evenly spaced on a logarithmic scale, including both ends."""
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def measure(lock: Lock, data_dir: Path, low: float, high: float, steps: int) -> Iterator[Point]:
    """Train with growing rates and yield every step. Ends early if the loss diverges.

    Raises the findings of opening a run (R503, R504, R506, R509, R595, R596), and R506 for a bad sample.
    """
    import torch

    from ratc_runtime.checks import first_weights
    from ratc_runtime.data import pytree
    from ratc_runtime.data.joint import open_data_set
    from ratc_runtime.data.loading import train_loader
    from ratc_runtime.engine import TorchEngine
    from ratc_runtime.training.components import Own, make_parts
    from ratc_runtime.training.open_run import seed_everything
    from ratc_runtime.training.step import training_step

    training = lock.training
    torch.backends.cuda.matmul.allow_tf32 = training.tf32
    torch.backends.cudnn.allow_tf32 = training.tf32
    seed_everything(lock, 0)
    weights = first_weights.check(lock, Path()) if lock.training.init_from is not None else None
    parts = make_parts(lock, {"train": open_data_set(lock, data_dir, "train")}, Own(), weights)
    engine = TorchEngine(lock, parts.model)
    device = engine.world.device
    if isinstance(parts.criterion, torch.nn.Module):
        parts.criterion.to(device)
    loader = train_loader(parts.datasets["train"], lock, 0, parts.task.collate)

    def batches() -> Iterator[tuple[Any, Any]]:
        for epoch in itertools.count():
            loader.order.epoch = epoch
            for batch in loader:
                yield pytree.to_device(batch.image, device), pytree.to_device(batch.target, device)

    engine.train()
    feed, mean, best = batches(), 0.0, math.inf
    try:
        for step, rate in enumerate(rates(low, high, steps)):
            accumulation = training.gradient_accumulation_steps
            result = training_step(engine, parts.criterion, feed, accumulation, rate, training.gradient_clipping)
            loss = float(result.losses.double().mean())
            if not math.isfinite(loss):
                return
            mean += NEW * (loss - mean)
            # The mean began at 0: this takes that out (as Adam does).
            corrected = mean / (1 - (1 - NEW) ** (step + 1))
            best = min(best, corrected)
            yield Point(rate, loss, corrected)
            if corrected > DIVERGED * best > 0:
                return
    finally:
        loader.close()


def suggest(points: Sequence[Point]) -> tuple[float, str]:
    """Return the rate at which the mean loss falls fastest, rounded to two digits, and the reason for the choice.

    It is at most `SAFE` times the rate of the least mean: the mean lags behind the loss, and a step at the edge of
    divergence does not represent a whole run. Raises R549 if the loss does not fall.
    """
    if len(points) < FEWEST:
        raise _nothing(f"after {counted(len(points), 'step')} the loss is not finite or has diverged")
    least = min(range(len(points)), key=lambda index: points[index].mean)
    first = points[0].mean
    if first - points[least].mean < LEAST_FALL * abs(first):
        raise _nothing(f"the mean loss is {first:.4g} at first and {points[least].mean:.4g} at the least")

    def slope(index: int) -> float:
        before, after = points[max(0, index - 2)], points[min(least, index + 2)]
        return (after.mean - before.mean) / math.log10(after.rate / before.rate)

    chosen = min(range(1, least), key=slope, default=least)
    steepest, safe = points[chosen].rate, SAFE * points[least].rate
    rate = float(f"{min(steepest, safe):.1e}")
    reason = f"the mean loss falls fastest there, by {-slope(chosen):.3g} a decade"
    if safe < steepest:
        reason = f"a tenth of the rate at which the mean loss is least; it falls fastest at {steepest:.1e}"
    reason += f"; it is least ({points[least].mean:.4g}) at {points[least].rate:.1e}"
    if points[-1].mean > DIVERGED * points[least].mean > 0:
        reason += f", and {DIVERGED:g} times that at {points[-1].rate:.1e}"
    return rate, reason


def _nothing(note: str) -> RuntimeFinding:
    return RuntimeFinding(
        "R549",
        "the range test finds no learning rate at which the loss falls",
        note,
        "look at the curve: a wider range (--low, --high) or more steps may show it; a loss that never falls may have"
        " data or a model that do not fit it",
    )


def _run(arguments: argparse.Namespace) -> None:
    from ratc_runtime.training import loop

    found = read_lock(arguments.lock)
    lock = alone(found)
    loop.prepare_environment(lock)
    data_dir = arguments.data_dir or Path(os.environ.get("RAT_DATA_DIR") or lock.data.data_dir)
    from tqdm import tqdm

    points = []
    measured = measure(lock, data_dir.expanduser(), arguments.low, arguments.high, arguments.steps)
    for point in tqdm(measured, total=arguments.steps, unit="step", disable=None, leave=False):
        points.append(point)
    content: dict[str, Any] = {
        "experiment_name": lock.experiment_name,
        "fingerprint": found.fingerprint(),
        "global_batch_size": lock.training.global_batch_size,
        "precision": lock.training.precision,
        "device": lock.hardware.card or lock.hardware.device,
        "points": [point._asdict() for point in points],
        "learning_rate": None,
        "reason": None,
    }
    try:
        content["learning_rate"], content["reason"] = suggest(points)
    finally:
        # The curve is worth looking at if it suggests nothing, too.
        try:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RuntimeFinding("R510", f"cannot write {arguments.output}", error.strerror or str(error)) from None


def main(argv: list[str] | None = None) -> int:
    """Run the test and write the curve; return 0, or 1 after a finding."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime.extras.range_test",
        description="Train with growing learning rates and suggest one.",
    )
    parser.add_argument("lock", type=Path, help="the lock of a compiled spec")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the curve, as JSON")
    parser.add_argument(
        "--data-dir", type=Path, help="folder of the data (default: RAT_DATA_DIR, or the folder in the lock)"
    )
    parser.add_argument("--low", type=option_types.rate, default=1e-6, help="the first rate (default: 1e-6)")
    parser.add_argument("--high", type=option_types.rate, default=1.0, help="the last rate (default: 1)")
    parser.add_argument("--steps", type=int, default=100, help="largest number of optimizer steps (default: 100)")
    arguments = parser.parse_args(argv)
    if arguments.low >= arguments.high or arguments.steps < FEWEST:
        parser.error(f"the first rate is below the last, and there are {FEWEST} steps or more")
    try:
        _run(arguments)
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
