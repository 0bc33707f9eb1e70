"""A checkpoint opened for inference: its lock, its model with the weights, and its task."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ratc_runtime.checkpoint.header import lock_of, read
from ratc_runtime.checkpoint.restored import restored
from ratc_runtime.config import option_types
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.data.cache import available_memory
from ratc_runtime.distributed.world import World
from ratc_runtime.engine.base import BaseEngine
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.models import trusted
from ratc_runtime.output.results import RESULTS_FILE
from ratc_runtime.output.sizes import counted
from ratc_runtime.tasks import make_task, names
from ratc_runtime.tasks.base import Task
from ratc_runtime.training.out_of_memory import explain

#: The checkpoints to look for in an output folder, in order; those without a suffix are DeepSpeed's.
_IN_A_RUN = ("best.pt", "best", "last.pt", "last")

#: Most bytes of one image as float32: 16,384 x 16,384 pixels of one channel. Larger ones take minutes.
_MOST_BYTES = 2**30


class Predictor(BaseEngine):
    """The engine of a model in one process, for inference only."""

    def __init__(self, lock: Lock, model: nn.Module, device: torch.device) -> None:
        super().__init__(lock, World(0, 1, device))
        self._lock = lock
        self.module = self.model = model.to(device).eval()

    def predict(self, image: Any) -> Any:
        """Return the outputs for a batch. Raises R509 if the model fails, R511 if memory is too small."""
        try:
            return super().predict(image)
        except RuntimeFinding:
            raise
        except Exception as error:  # a checkpoint's lock may give sizes that its model cannot take
            raise failed_outputs(self._lock, error, self.world.device) from error


class _PartPredictor(Predictor):
    """The predictor of one of a model's tasks."""

    def __init__(self, lock: Lock, whole: Predictor, name: str) -> None:
        super().__init__(lock, whole.module, whole.world.device)
        self._whole, self._name = whole, name

    def predict(self, image: Any) -> Any:
        """Return the outputs of that task for its images."""
        return self._whole.predict({self._name: image})[self._name]


@dataclass(frozen=True)
class OpenCheckpoint:
    """An opened checkpoint. `lock` is the checkpoint's, changed to a single process on the device in use. `fingerprint`
    is that of the original lock; `epoch` and `step` are the run's progress. With `trust` the lock's data set and loss
    may be its own code, too.
    """

    path: Path
    lock: Lock
    engine: Predictor
    task: Task
    fingerprint: str
    epoch: int | None = None
    step: int | None = None
    trust: bool = False

    def of(self, name: str | None) -> OpenCheckpoint:
        """Return one of several tasks alone; None returns all. Raises R542 if there is no such task."""
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
    """Add the arguments of every command that opens a checkpoint."""
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
    parser.add_argument(
        "--batch-size", type=option_types.count, help="samples in a batch (default: the micro-batch of the lock)"
    )


def check_trust(names: Iterable[str], path: Path, trust: bool) -> None:
    """Raise R584 if a name is own code, `package.module:callable`, and the user does not trust both that code and the
    checkpoint at `path` that names it.
    """
    own = sorted({name for name in names if ":" in name})
    if own and not trusted.allows(path, trust):
        raise RuntimeFinding(
            "R584",
            f"the checkpoint's lock names code of its own, {', '.join(own)}",
            "anybody may have written the checkpoint; no code was run",
            trusted.HELP,
        )


def open_checkpoint(
    checkpoint: Path,
    lock_path: Path | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    trust: bool = False,
) -> OpenCheckpoint:
    """Build the model of a checkpoint, with its weights, on the device (default: a GPU if there is one).

    An own model is built only if it is trusted (`trusted.allows`); as in training, it is looked for in the working
    folder. Raises R584 for an untrusted one, R504 if there is no such device, R505 for a lock that cannot be read, R508
    if the checkpoint is damaged or missing, R511 for images too large for memory, R509 if the model cannot be built or
    has other weights.
    """
    path = _found(checkpoint)
    exported = path.suffix == ".safetensors"
    if exported and lock_path is None:
        raise RuntimeFinding("R508", f"{path} holds no lock", help="name the run's lock with --lock")
    header = None if exported else read(path)
    lock = read_lock(lock_path) if lock_path is not None else lock_of(header or {})
    where, fingerprint = _device(device), lock.fingerprint()
    lock = _for_one_process(lock, where, batch_size)
    check_trust([lock.model.name], path, trust)
    check_room(lock)
    model = restored(lock, path, trust)
    progress = header["progress"] if header else {}
    engine, task = Predictor(lock, model, where), make_task(lock)
    names.give(task, progress.get("class_names"))
    return OpenCheckpoint(path, lock, engine, task, fingerprint, progress.get("epoch"), progress.get("step"), trust)


def failed_outputs(lock: Lock, error: Exception, device: torch.device) -> RuntimeFinding:
    """Return the finding for a model that fails on images of its lock's size: R511 if memory is short, else R509."""
    size, words = " x ".join(map(str, lock.data.image_size)), " ".join(f"{type(error).__name__}: {error}".split())[:400]
    if isinstance(error, MemoryError) or explain(error, device) or explain(error, torch.device("cpu")):
        return RuntimeFinding(
            "R511", f"the outputs of the model for images of {size} do not fit into memory", words, "try --batch-size 1"
        )
    return RuntimeFinding("R509", f"model {lock.model.name} fails on images of {size}", words)


def check_room(lock: Lock) -> None:
    """Raise R511 for images that are too large for this machine's memory, or larger than `_MOST_BYTES`: the lock is
    untrusted.
    """
    data, free = lock.data, available_memory()
    pixels = sum(math.prod(max(1, round(side * scale)) for side in data.image_size) for scale in data.scales)
    needed = 4 * data.channels * pixels
    if needed > _MOST_BYTES or (free and needed > free):
        size = " x ".join(map(str, data.image_size))
        raise RuntimeFinding(
            "R511",
            f"one image of {size} with {counted(data.channels, 'channel')}, as in the lock, does not fit into memory",
            f"it takes {needed:,} bytes; {free:,} are free, and {_MOST_BYTES:,} are taken at most",
        )


def _found(path: Path) -> Path:
    """Return the checkpoint in a run's output folder, or `path` itself; raise R508 if there is none."""
    if not path.exists():
        raise RuntimeFinding(
            "R508", f"there is no {path}", help="name an output folder of a run, or a checkpoint in it"
        )
    runs = [path / "checkpoints", path] if path.is_dir() else []
    for folder in runs:
        for name in _IN_A_RUN:
            if (folder / name).exists():
                return folder / name
    if runs and any((path / name).exists() for name in (RESULTS_FILE, "checkpoints", "logs")):
        raise RuntimeFinding(
            "R508",
            f"the output folder {path} holds no checkpoint of the built-in loop",
            f"looked for checkpoints/{', checkpoints/'.join(_IN_A_RUN)}; a program of the spec's own (`entrypoint`) "
            "has checkpoints of its own form",
            "name another folder, or a checkpoint",
        )
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


def _for_one_process(lock: Lock, device: torch.device, batch_size: int | None) -> Lock:
    """Return the lock for one process on a device. Outputs stay the same, except for a CPU's precision.

    There is at most one loader process per core of this machine, which may not be the lock's.
    """
    training = lock.training.replace(
        micro_batch_size=batch_size or lock.training.micro_batch_size,
        activation_checkpointing=False,
        compile=False,
    )
    if device.type == "cpu" and training.precision == "fp16":
        warn("the model was trained in fp16, which is slow on the CPU: it runs in fp32")
        training = training.replace(precision="fp32")
    workers = min(lock.data.num_workers, len(os.sched_getaffinity(0)))
    data = lock.data.replace(num_workers=workers, prefetch_factor=2 if workers else None)
    parallel = lock.parallel.replace(world_size=1, nodes=1, processes_per_node=1)
    kind = "cuda" if device.type == "cuda" else "cpu"
    hardware = lock.hardware.replace(device=kind)
    return lock.replace(training=training, parallel=parallel, hardware=hardware, data=data)
