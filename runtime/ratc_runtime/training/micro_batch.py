"""The split of a rank's share of the global batch into micro-batches after the lock's did not fit into memory.

The lock stays as reviewed. The reduction is recorded as `micro_batch.json` in the output folder, and the next start
under the same lock reads it. Global batch, order of samples and learning rates never change.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.output import atomic
from ratc_runtime.training import out_of_memory

FILE = "micro_batch.json"
VERSION = 1


@dataclass(frozen=True)
class Reduction:
    """One out-of-memory error: micro-batch before and after, time, rank, and torch's message."""

    before: int
    after: int
    when: str
    rank: int
    error: str


def with_micro_batch(lock: Lock, micro_batch: int) -> Lock:
    """Return the lock with another micro-batch and the accumulation steps that keep its global batch.

    Raises ValueError if the micro-batch does not divide a rank's share.
    """
    share, rest = divmod(lock.training.global_batch_size, lock.parallel.world_size)
    if micro_batch < 1 or rest or share % micro_batch:
        raise ValueError(f"a micro-batch of {micro_batch} does not divide {lock.training.global_batch_size}")
    training = lock.training.replace(micro_batch_size=micro_batch, gradient_accumulation_steps=share // micro_batch)
    return lock.replace(training=training)


def smaller(lock: Lock) -> int | None:
    """Return the largest micro-batch of at most half the lock's that divides a rank's share; None if there is none."""
    share = lock.training.global_batch_size // lock.parallel.world_size
    half = lock.training.micro_batch_size // 2
    return next((size for size in range(half, 0, -1) if share % size == 0), None)


class Split:
    """The split in use: the reviewed lock's, with the reductions after out-of-memory errors."""

    def __init__(self, reviewed: Lock, lock_sha256: str, output_dir: Path, fresh: bool) -> None:
        """Read the record of an earlier start under the same lock, unless this one starts from the beginning."""
        self.reviewed, self.path = reviewed, output_dir / FILE
        self._sha256 = lock_sha256
        self.reductions: list[Reduction] = [] if fresh else self._read()

    @property
    def lock(self) -> Lock:
        """The lock with the micro-batch in use."""
        return with_micro_batch(self.reviewed, self.reductions[-1].after) if self.reductions else self.reviewed

    @property
    def text(self) -> str:
        """The split as text for messages."""
        training = self.lock.training
        return (
            f"micro-batch {training.micro_batch_size} x {training.gradient_accumulation_steps} accumulation steps x"
            f" {self.lock.parallel.world_size} process(es)"
        )

    def follow(self, world: World, fresh: bool) -> bool:
        """Take the main rank's reductions, whose file other nodes may see late. Return whether this rank's differed."""
        if fresh and world.main:
            self.path.unlink(missing_ok=True)
        mine, self.reductions = self.reductions, world.gather(self.reductions)[0]
        if world.main and self.reductions:
            lock = self.reviewed.training
            warn(
                f"the lock says micro-batch {lock.micro_batch_size} x {lock.gradient_accumulation_steps}, which ran"
                f" out of memory {self.reductions[-1].when}; this run takes {self.text}, the same global batch"
                f" ({self.path} says so; delete it, or compile again, to try the lock's)"
            )
        return mine != self.reductions

    def reduce(self, when: str, rank: int, error: str, everywhere: bool) -> None:
        """Take the next smaller micro-batch (at most half); raise R511 if it is 1."""
        size = smaller(self.lock)
        if size is None:
            raise out_of_memory.nothing_smaller(when, error, everywhere)
        self.reductions.append(Reduction(self.lock.training.micro_batch_size, size, when, rank, error))

    def announce(self, model: Any) -> None:
        """Warn on stderr that training continues with another split than the lock's."""
        last, lock = self.reductions[-1], self.reviewed.training
        warn(
            f"OUT OF MEMORY {last.when} (rank {last.rank}): micro-batch {last.before} does not fit; going on with"
            f" {self.text}, the same global batch {lock.global_batch_size}. This differs from the lock, which says"
            f" micro-batch {lock.micro_batch_size} x {lock.gradient_accumulation_steps}; recorded in {self.path}."
            f" {last.error}"
        )
        if _has_batch_norm(model):
            warn(f"batch norm now takes its statistics over {last.after} samples instead of {last.before}")

    def write(self) -> None:
        """Write the record atomically; raise R510 on failure. Any rank may call this."""
        content = {"version": VERSION, "lock_sha256": self._sha256, **self.record()}
        if self.reviewed.elastic is not None:
            content["world_size"] = self.reviewed.parallel.world_size
        try:
            atomic.write_text(self.path, json.dumps(content, indent=2) + "\n", sync=True, shared=True)
        except OSError as error:
            raise RuntimeFinding("R510", f"cannot write {self.path}", error.strerror or str(error)) from None

    def record(self) -> dict[str, Any]:
        """Return the split's entry in results.json."""
        lock, now = self.reviewed.training, self.lock.training
        return {
            "global_batch_size": lock.global_batch_size,
            "micro_batch_size": now.micro_batch_size,
            "gradient_accumulation_steps": now.gradient_accumulation_steps,
            "lock_micro_batch_size": lock.micro_batch_size,
            "out_of_memory": [dataclasses.asdict(one) for one in self.reductions],
        }

    def parameters(self) -> dict[str, str]:
        """Return the reductions as MLflow parameters. These never change, so each reduction has its own."""
        return {
            f"out_of_memory.{number}": f"micro-batch {one.before} -> {one.after}, {one.when}, rank {one.rank}"
            for number, one in enumerate(self.reductions, 1)
        }

    def _read(self) -> list[Reduction]:
        try:
            content = json.loads(self.path.read_bytes())
            if content["version"] != VERSION or content["lock_sha256"] != self._sha256:
                return []  # another lock was not tried yet
            if content.get("world_size", self.reviewed.parallel.world_size) != self.reviewed.parallel.world_size:
                return []  # nor was this number of nodes
            found = [Reduction(**one) for one in content["out_of_memory"]]
            for one in found:
                with_micro_batch(self.reviewed, one.after)
            return found
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if os.environ.get("RANK", "0") == "0":
                warn(f"{self.path} cannot be read and is left out: {type(error).__name__}: {error}")
            return []


def _has_batch_norm(model: Any) -> bool:
    import torch

    return any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.modules())
