"""A checkpoint opened to be used and not to be trained on: its lock, its model with the weights, and its task."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ratc_runtime.checkpoint.header import lock_of, read
from ratc_runtime.checkpoint.weights import load_into
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.distributed.world import World
from ratc_runtime.engine.base import BaseEngine
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.models import trusted
from ratc_runtime.models.build import build_model
from ratc_runtime.tasks import make_task
from ratc_runtime.tasks.base import Task

#: What an output folder is asked for, in this order; those without a suffix are DeepSpeed's.
_IN_A_RUN = ("best.pt", "best", "last.pt", "last")


class Predictor(BaseEngine):
    """A model in one process, for outputs alone."""

    def __init__(self, lock: Lock, model: nn.Module, device: torch.device) -> None:
        super().__init__(lock, World(0, 1, device))
        self.module = self.model = model.to(device).eval()


class _PartPredictor(Predictor):
    """One of several tasks of a model."""

    def __init__(self, lock: Lock, whole: Predictor, name: str) -> None:
        super().__init__(lock, whole.module, whole.world.device)
        self._whole, self._name = whole, name

    def predict(self, image: Any) -> Any:
        """Return the outputs of that task for its images."""
        return self._whole.predict({self._name: image})[self._name]


@dataclass(frozen=True)
class Opened:
    """`lock` is the checkpoint's for a single process on the device that is used; `fingerprint` is that of the
    lock as it was, and `epoch` and `step` say how far the run was. With `trust` the lock's data set and loss may be
    code of its own, too.
    """

    path: Path
    lock: Lock
    engine: Predictor
    task: Task
    fingerprint: str
    epoch: int | None = None
    step: int | None = None
    trust: bool = False

    def of(self, name: str | None) -> Opened:
        """Return one of several tasks by itself; None is the whole. Raises R542 if there is no such task."""
        if name is None:
            return self
        if name not in self.task.parts:
            known = ", ".join(self.task.parts)
            raise RuntimeFinding(
                "R542", f"there is no task `{name}`", f"there are {known}" if known else "the checkpoint has one task"
            )
        part = self.task.parts[name]
        engine = _PartPredictor(part.lock, self.engine, name)
        return dataclasses.replace(self, lock=part.lock, engine=engine, task=part)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command takes that opens a checkpoint."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a .pt file, a DeepSpeed folder, exported .safetensors, or a run's output folder: its best",
    )
    parser.add_argument("--lock", type=Path, help="the lock, if the file holds none (.safetensors)")
    parser.add_argument(
        "--trust", action="store_true", help="run code that the checkpoint's lock names, `package.module:callable`"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--batch-size", type=positive, help="samples at a time (default: the lock's micro-batch)")


def check_trust(names: Iterable[str], path: Path, trust: bool) -> None:
    """Raise R584 if a name is code of somebody's own, `package.module:callable`, and the user does not trust it and the
    checkpoint at `path` that names it.
    """
    own = sorted({name for name in names if ":" in name})
    if own and not trusted.allows(path, trust):
        raise RuntimeFinding(
            "R584",
            f"the checkpoint's lock names code of its own, {', '.join(own)}",
            "a checkpoint may be anybody's; nothing of it was run",
            trusted.HELP,
        )


def positive(text: str) -> int:
    """Read a whole number from 1 on, of a command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number from 1 on")
    return int(text)


def open_checkpoint(
    checkpoint: Path,
    lock_path: Path | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    trust: bool = False,
) -> Opened:
    """Build the model of a checkpoint, with its weights, on the device (default: a GPU if there is one).

    A model of one's own is built only if it is trusted (`trusted.allows`); it is looked for as when it trained, from
    the working folder on. Raises R584 for one that is not trusted, R504 if there is no
    such device, R505 for a lock that cannot be read, R508 if the checkpoint is damaged or there is none, R509 where
    the model cannot be built or has other weights.
    """
    path = _found(checkpoint)
    exported = path.suffix == ".safetensors"
    if exported and lock_path is None:
        raise RuntimeFinding("R508", f"{path} holds no lock", help="name the run's lock with --lock")
    header = None if exported else read(path)
    lock = read_lock(lock_path) if lock_path is not None else lock_of(header or {})
    where, fingerprint = _device(device), lock.fingerprint()
    lock = _alone(lock, where, batch_size)
    check_trust([lock.model.name], path, trust)
    model = build_model(lock)
    load_into(model, lock.model.name, path, trust)
    progress = header["progress"] if header else {}
    engine, task = Predictor(lock, model, where), make_task(lock)
    return Opened(path, lock, engine, task, fingerprint, progress.get("epoch"), progress.get("step"), trust)


def _found(path: Path) -> Path:
    """The checkpoint itself, if its run's output folder is named."""
    runs = [path / "checkpoints", path] if path.is_dir() else []
    for folder in runs:
        for name in _IN_A_RUN:
            if (folder / name).exists():
                return folder / name
    return path


def _device(named: str | None) -> torch.device:
    if named is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(named)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RuntimeFinding("R504", f"there is no device {named} here", str(error).split("\n")[0][:300]) from None
    return device


def _alone(lock: Lock, device: torch.device, batch_size: int | None) -> Lock:
    """The lock for one process on a device: nothing that decides an output but the precision of a CPU."""
    training = lock.training.replace(
        micro_batch_size=batch_size or lock.training.micro_batch_size,
        activation_checkpointing=False,
        compile=False,
    )
    if device.type == "cpu" and training.precision == "fp16":
        warn("the model was trained in fp16, which the CPU does not do well: it is used in fp32")
        training = training.replace(precision="fp32")
    parallel = lock.parallel.replace(world_size=1, nodes=1, processes_per_node=1)
    kind = "cuda" if device.type == "cuda" else "cpu"
    hardware = lock.hardware.replace(device=kind)
    return lock.replace(training=training, parallel=parallel, hardware=hardware)
