"""Loaders whose order is a function of seed and epoch alone, and whose every training step is a full batch.

Optimizer step k of an epoch takes samples [k*G, (k+1)*G) of the epoch's permutation, G being the global batch;
each rank takes its part of it. So the same samples meet in a step whatever the number of processes, and a run
stopped in the middle of an epoch goes on from its step count.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.lock import Data, Lock

#: Makes one target of those of a micro-batch (`Task.collate`).
Collate = Callable[[Sequence[Any]], Any]
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Batch(NamedTuple):
    """A micro-batch of B samples."""

    image: Any  # (B, C, H, W), or a list of such, from fine to coarse
    target: Any  # as the task collates it
    weight: torch.Tensor  # (B,): 0 for a sample that only fills up an evaluation batch
    position: torch.Tensor  # (B,): index in the split
    names: list[str]
    skipped: list[str]  # names of bad samples left out on the way
    problem: RuntimeFinding | None  # a bad sample under `on_bad_sample: fail`; the tensors are then empty


class Sample(NamedTuple):
    image: Any
    target: Any
    weight: float
    position: int
    name: str
    skipped: list[str]
    problem: RuntimeFinding | None


class _Guarded(Dataset[Sample]):
    """A dataset that answers every index: bad samples become findings, or are replaced by their successor.

    A position at or past the length stands for padding: that sample again, with weight 0. Workers return a
    finding as a value because an exception would lose its fields on the way to the main process.
    """

    def __init__(self, dataset: Any, skip: bool, training: bool) -> None:
        self.dataset, self.skip, self.training = dataset, skip, training
        self.length = len(dataset)

    def __getitem__(self, position: int) -> Sample:
        index = position % self.length
        weight = 1.0 if position < self.length else 0.0
        skipped: list[str] = []
        for step in range(self.length):
            current = (index + step) % self.length
            try:
                item = self.dataset[current]
                image, target, name = _parts(item)
            except Exception as error:  # a dataset of the user's may raise anything
                finding = _as_finding(error, self._name(current))
                if not self.skip:
                    empty = torch.empty(0)
                    return Sample(empty, empty, weight, current, self._name(current), [], finding)
                skipped.append(self._name(current))
                if not self.training:
                    weight = 0.0  # a successor is scored under its own index
                continue
            return Sample(image, target, weight, current, name or self._name(current), skipped, None)
        nothing = RuntimeFinding("R506", "every sample of the split is bad", f"the first is {self._name(0)}")
        return Sample(torch.empty(0), torch.empty(0), weight, index, self._name(index), skipped, nothing)

    def _name(self, index: int) -> str:
        names = getattr(self.dataset, "names", None)
        return str(names[index]) if names is not None else f"sample {index}"


def _parts(item: Any) -> tuple[Any, Any, str | None]:
    """Return image, target and name, if it has one, of an item: a mapping, or a pair of image and target."""
    if isinstance(item, Mapping):
        name = item.get("name")
        return item["image"], item["target"], None if name is None else str(name)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1], None
    raise TypeError(f"an item is a mapping of image and target, or a pair of them, not {type(item).__name__}")


def _as_finding(error: Exception, name: str) -> RuntimeFinding:
    if isinstance(error, RuntimeFinding):
        return error
    return RuntimeFinding(
        "R506",
        f"{name} cannot be loaded",
        f"{type(error).__name__}: {error}",
        "repair it, or set `data.on_bad_sample: skip` in the spec and compile again",
        everywhere=False,
    )


def _collate(targets: Collate, samples: list[Sample]) -> Batch:
    problem = next((sample.problem for sample in samples if sample.problem is not None), None)
    names = [sample.name for sample in samples]
    skipped = [name for sample in samples for name in sample.skipped]
    if problem is not None:
        empty = torch.empty(0)
        return Batch(empty, empty, empty, empty, names, skipped, problem)
    return Batch(
        default_collate([sample.image for sample in samples]),
        targets([sample.target for sample in samples]),
        torch.tensor([sample.weight for sample in samples]),
        torch.tensor([sample.position for sample in samples]),
        names,
        skipped,
        None,
    )


class TrainOrder:
    """Micro-batches of one rank in one epoch, from a given optimizer step on."""

    def __init__(self, length: int, lock: Lock, rank: int) -> None:
        training = lock.training
        self.length, self.seed, self.rank = length, lock.seed, rank
        self.world, self.global_batch = lock.parallel.world_size, training.global_batch_size
        self.micro = training.micro_batch_size
        steps = length // self.global_batch
        cap = training.max_steps_per_epoch
        self.steps = steps if cap is None else min(steps, cap)
        self.epoch, self.first_step = 0, 0

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch & (2**63 - 1))
        order = torch.randperm(self.length, generator=generator).tolist()
        share = self.global_batch // self.world
        for step in range(self.first_step, self.steps):
            start = step * self.global_batch + self.rank * share
            for at in range(start, start + share, self.micro):
                yield order[at : at + self.micro]


class EvaluationOrder:
    """Every world-th position for each rank, padded so that all ranks make the same number of batches."""

    def __init__(self, length: int, micro: int, rank: int, world: int) -> None:
        per_rank = -(-length // world)
        self.positions = [rank + world * i for i in range(per_rank)]
        self.micro = micro

    def __iter__(self) -> Iterator[list[int]]:
        for at in range(0, len(self.positions), self.micro):
            yield self.positions[at : at + self.micro]


class Loader:
    """Iterates over the batches of one split; raises R506 for a bad sample, R513 for a process that was killed."""

    def __init__(self, dataset: Any, order: Any, data: Data, training: bool, targets: Collate) -> None:
        self.dataset, self.order = dataset, order
        self.skipped: set[str] = set(getattr(dataset, "missing", ()))
        # A generator of its own: making an iterator must not move the global random state.
        self._generator = torch.Generator().manual_seed(0)
        self._live: Any = None
        workers = data.num_workers
        self._loader = DataLoader(
            _Guarded(dataset, data.on_bad_sample == "skip", training),
            batch_sampler=order,
            num_workers=workers,
            collate_fn=partial(_collate, targets),
            pin_memory=data.pin_memory and torch.cuda.is_available(),
            persistent_workers=data.persistent_workers and workers > 0 and training,
            prefetch_factor=data.prefetch_factor if workers > 0 else None,
            worker_init_fn=_ignore_stop_signals,
            generator=self._generator,
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        self._live = iter(self._loader)
        while True:
            try:
                batch = next(self._live)
            except StopIteration:
                return
            except RuntimeError as error:  # torch's word for a worker that is gone
                if "DataLoader worker" not in str(error):
                    raise
                raise _worker_gone(str(error)) from error
            if batch.problem is not None:
                raise batch.problem
            self.skipped.update(batch.skipped)
            yield batch

    def close(self) -> None:
        """End the loader processes.

        Left to the interpreter's end they would be sent SIGTERM, which they ignore, and waited for without limit.
        """
        shut_down = getattr(self._live, "_shutdown_workers", None)  # absent where there are no processes
        if shut_down is not None:
            shut_down()


def _worker_gone(text: str) -> RuntimeFinding:
    return RuntimeFinding(
        "R513",
        "a data-loading process was killed",
        " ".join(text.split())[:400],
        "where the kernel did it for want of host memory (dmesg and the scheduler's report say so): set a smaller"
        " data.num_workers, or ask for more resources.memory\n"
        "run the same command again: it continues from the last checkpoint",
        everywhere=False,
    )


def _ignore_stop_signals(_worker: int) -> None:
    # A signal to the whole process group is the main process's to answer: a worker that died of it would
    # break the step during which the state is saved.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def train_loader(dataset: Any, lock: Lock, rank: int, targets: Collate) -> Loader:
    """Return the training loader; its `order.epoch` and `order.first_step` are set before each pass.

    Raises R503 where the split cannot fill one global batch.
    """
    order = TrainOrder(len(dataset), lock, rank)
    if order.steps < 1:
        raise RuntimeFinding(
            "R503",
            f"the train split has {len(dataset)} sample(s), fewer than one global batch of {order.global_batch}",
            "every optimizer step takes a full global batch",
            "set a smaller training.target_batch_size, or give more samples",
        )
    return Loader(dataset, order, lock.data, True, targets)


def evaluation_loader(dataset: Any, lock: Lock, rank: int, targets: Collate) -> Loader:
    """Return a loader over a whole split; samples with weight 0 are not to be counted.

    Raises R506 where the split is empty.
    """
    if len(dataset) == 0:
        raise RuntimeFinding("R506", "a split without samples cannot be evaluated", "val and test need some")
    order = EvaluationOrder(len(dataset), lock.training.micro_batch_size, rank, lock.parallel.world_size)
    return Loader(dataset, order, lock.data, False, targets)
