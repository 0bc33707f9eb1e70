"""Loaders whose order is a function of seed and epoch alone, and whose training steps are full global batches.

Optimizer step k of an epoch takes samples [k*G, (k+1)*G) of the epoch's permutation, with the global batch G, and each
rank takes its part. So a step has the same samples for any number of processes, and a run that stopped in an epoch
continues from its step count. The rest at the end of an epoch that fills no global batch is left out (`last_batch:
drop`; the next permutation leaves out other samples), or makes a last, smaller step (`keep`) with the usual number of
micro-batches, because DeepSpeed cannot change it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, default_collate

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.augment import Augmentation, PerTask
from ratc_runtime.data.lengths import check_length
from ratc_runtime.data.samples import Draw, Guarded, Sample, with_note
from ratc_runtime.distributed import stacks, watchdog
from ratc_runtime.distributed.phases import phase
from ratc_runtime.errors import RuntimeFinding, warn

#: Makes one target of those of a micro-batch (`Task.collate`).
Collate = Callable[[Sequence[Any]], Any]
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


#: The largest share of the training samples that a dropped last batch may have without a warning. Chosen, not measured.
MOST_LEFT_OUT = 0.2
#: A larger share of bad samples in a split gives a warning.
WARNING_SHARE = 0.01
#: A larger share of bad samples ends the run; one bad sample is always accepted.
MOST_SHARE = 0.1


class Batch(NamedTuple):
    """A micro-batch of B samples."""

    image: Any  # (B, C, H, W) or (B, C, D, H, W), or a list of such, from fine to coarse
    target: Any  # (B, 1, H, W), or as else the task collates it
    weight: torch.Tensor  # (B,): 0 for a sample that only fills up an evaluation batch
    position: torch.Tensor  # (B,): index in the split
    names: list[str]
    skipped: list[str]  # names of bad samples left out on the way
    problem: RuntimeFinding | None  # a bad sample under `on_bad_sample: fail`; the tensors are then empty


class _Collate:
    """Makes a batch of samples in a loader process. Weights and positions are lists, which need no shared memory."""

    def __init__(self, targets: Collate) -> None:
        self.targets = targets

    def __call__(self, samples: list[Sample]) -> Batch:
        problem = next((sample.problem for sample in samples if sample.problem is not None), None)
        names = [sample.name for sample in samples]
        skipped = [name for sample in samples for name in sample.skipped]
        image: Any = torch.empty(0)
        target: Any = image
        if problem is None:
            try:
                image = default_collate([sample.image for sample in samples])
                target = self.targets([sample.target for sample in samples])
            except RuntimeFinding as finding:
                problem = with_note(finding, f"samples {', '.join(names[:8])}")
            except Exception as error:  # a collate of the user's may raise anything
                problem = _not_alike(samples, error)
        weight: Any = [sample.weight for sample in samples]
        position: Any = [sample.position for sample in samples]
        return Batch(image, target, weight, position, names, skipped, problem)


def _not_alike(samples: list[Sample], error: Exception) -> RuntimeFinding:
    shapes = [f"{sample.name}: image {_shape(sample.image)}, target {_shape(sample.target)}" for sample in samples]
    return RuntimeFinding(
        "R535",
        "samples cannot be combined into a batch",
        "\n".join([*shapes[:8], " ".join(f"{type(error).__name__}: {error}".split())[:300]]),
        "all images of a data set need the same size, and all targets the same shape",
        everywhere=False,
    )


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_shape(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shape(item)}" for key, item in value.items()) + "}"
    return type(value).__name__


class TrainOrder:
    """The micro-batches of one rank in one epoch, from a given optimizer step on."""

    def __init__(self, length: int, lock: Lock, rank: int) -> None:
        training = lock.training
        self.length, self.seed, self.rank = length, lock.seed, rank
        self.world, self.global_batch = lock.parallel.world_size, training.global_batch_size
        self.micro, self.accumulation = training.micro_batch_size, training.gradient_accumulation_steps
        self.rest = length % self.global_batch if training.last_batch == "keep" else 0
        steps = length // self.global_batch + (self.rest > 0)
        cap = training.max_steps_per_epoch
        self.steps = steps if cap is None else min(steps, cap)
        self.epoch, self.first_step = 0, 0

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch & (2**63 - 1))
        order = torch.randperm(self.length, generator=generator).tolist()
        share = self.global_batch // self.world
        for step in range(self.first_step, self.steps):
            if (sizes := self.last_sizes(step)) is not None:
                yield from self._last(order[step * self.global_batch :], sizes)
                return
            start = step * self.global_batch + self.rank * share
            for at in range(start, start + share, self.micro):
                yield order[at : at + self.micro]

    def last_sizes(self, step: int) -> list[int] | None:
        """Return the sizes of this rank's micro-batches if `step` is a smaller last one, else None.

        The rest is spread evenly. A micro-batch of size 0 consists of one sample with weight 0.
        """
        if (step + 1) * self.global_batch <= self.length:
            return None
        base, more = divmod(self.rest, self.world * self.accumulation)
        return [base + (number * self.world + self.rank < more) for number in range(self.accumulation)]

    def weights(self, step: int) -> list[float] | None:
        """Return loss factors that make the mean over ranks and micro-batches of `step` one over samples, or None."""
        sizes = self.last_sizes(step)
        return None if sizes is None else [size * self.world * self.accumulation / self.rest for size in sizes]

    def _last(self, rest: list[int], sizes: list[int]) -> Iterator[list[int]]:
        base, more = divmod(self.rest, self.world * self.accumulation)
        for number, size in enumerate(sizes):
            slot = number * self.world + self.rank
            at = slot * base + min(slot, more)
            yield rest[at : at + size] or rest[:1]


class EvaluationOrder:
    """Every world-th position for each rank, padded so that all ranks have the same number of batches."""

    def __init__(self, length: int, micro: int, rank: int, world: int) -> None:
        per_rank = -(-length // world)
        self.positions = [rank + world * i for i in range(per_rank)]
        self.micro = micro

    def __iter__(self) -> Iterator[list[int]]:
        for at in range(0, len(self.positions), self.micro):
            yield self.positions[at : at + self.micro]


class _Draws:
    """The batches of an order as draws, with the epoch for random numbers, if the order has one."""

    def __init__(self, order: Any) -> None:
        self.order = order

    def __iter__(self) -> Iterator[list[Draw]]:
        for positions in self.order:
            epoch = getattr(self.order, "epoch", None)
            yield [Draw(epoch, position) for position in positions]


class Loader:
    """Iterates over the batches of one split.

    Raises R506 for a bad sample, R513 for a killed process, R532 and R534 for augmentations that do not fit the data,
    R533 for too many bad samples and R535 for samples that cannot form a batch.
    """

    def __init__(
        self,
        dataset: Any,
        order: Any,
        lock: Lock,
        rank: int,
        targets: Collate,
        augment: Callable[[Any, Any, int], tuple[Any, Any]] | None = None,
    ) -> None:
        self.dataset, self.order, self.rank = dataset, order, rank
        self.skipped: set[str] = set()
        self._total = len(dataset) + len(getattr(dataset, "missing", ()))
        self._warned = False
        self._note_skipped(getattr(dataset, "missing", ()), everywhere=True)
        # A generator of its own: making an iterator must not move the global random state.
        self._generator = torch.Generator().manual_seed(0)
        self._live: Any = None
        self._begun: tuple[int, int] | None = None
        data = lock.data
        workers = data.num_workers
        self._loader = DataLoader(
            Guarded(dataset, data.on_bad_sample == "skip", lock.seed, augment, is_foreign(lock)),
            batch_sampler=_Draws(order),
            num_workers=workers,
            collate_fn=_Collate(targets),
            pin_memory=data.pin_memory and torch.cuda.is_available(),
            persistent_workers=data.persistent_workers and workers > 0,
            prefetch_factor=data.prefetch_factor if workers > 0 else None,
            worker_init_fn=ignore_stop_signals,
            generator=self._generator,
        )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def leaves(self) -> list[Loader]:
        """The loaders that read data: only this one."""
        return [self]

    def begin(self, epoch: int) -> None:
        """Start the loader processes on a whole epoch now. The next pass, if it is that epoch, finds batches ready."""
        if self._loader.num_workers:
            self.order.epoch, self.order.first_step = epoch, 0
            self._live, self._begun = iter(self._loader), (epoch, 0)

    def __iter__(self) -> Iterator[Batch]:
        place = (getattr(self.order, "epoch", None), getattr(self.order, "first_step", None))
        if self._begun is None or self._begun != place:
            self._live = iter(self._loader)
        self._begun = None
        while True:
            try:
                with phase("loader"):
                    batch = next(self._live)
            except StopIteration:
                return
            except RuntimeError as error:  # torch's error for a dead worker
                if "DataLoader worker" not in str(error):
                    raise
                raise killed_worker(str(error)) from error
            self._note_skipped(batch.skipped, everywhere=False)
            if batch.problem is not None:
                raise batch.problem
            watchdog.mark()
            yield batch._replace(weight=torch.tensor(batch.weight), position=torch.tensor(batch.position))

    def _note_skipped(self, names: Collection[str], everywhere: bool) -> None:
        """Count bad samples; raise R533 if they are too many for the rest to represent the split."""
        if not self.skipped.issuperset(names):
            self.skipped.update(names)
            bad, share = len(self.skipped), len(self.skipped) / self._total
            if bad > 1 and share > MOST_SHARE:
                raise RuntimeFinding(
                    "R533",
                    f"{bad} of {self._total} samples of a split are bad, more than {MOST_SHARE:.0%}",
                    f"among them {', '.join(sorted(self.skipped)[:8])}",
                    "repair them, or remove their names from the split: the remaining samples no longer represent "
                    "the data",
                    everywhere=everywhere,
                )
            if share > WARNING_SHARE and not self._warned and self.rank == 0:
                self._warned = True
                warn(
                    f"{share:.1%} of {self._total} samples of a split are bad and left out, {min(self.skipped)} for one"
                )

    def close(self) -> None:
        """End the loader processes.

        At interpreter exit torch would send them SIGTERM, which they ignore, and wait without limit.
        """
        shut_down = getattr(self._live, "_shutdown_workers", None)  # absent if there are no processes
        if shut_down is not None:
            shut_down()


def is_foreign(lock: Lock) -> bool:
    """Return whether a data set is the user's own, which may draw random numbers. The built-in ones draw none."""
    named = [part.data.dataset for part in lock.tasks.values()] if lock.tasks else [lock.data.dataset]
    return any(":" in name for name in named)


def killed_worker(text: str) -> RuntimeFinding:
    """Return R513 for torch's message about a killed loader process."""
    return RuntimeFinding(
        "R513",
        "a data-loading process was killed",
        " ".join(text.split())[:400],
        "if the kernel did it because host memory ran out (dmesg and the scheduler's report say so): set a smaller"
        " data.num_workers, or ask for more resources.memory\n"
        "run the same command again: it continues from the last checkpoint",
        everywhere=False,
    )


def ignore_stop_signals(_worker: int) -> None:
    """Ignore stop signals in a loader process. The main process handles them."""
    # A signal to the whole process group is the main process's to answer: a worker that died of it would
    # break the step during which the state is saved.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    stacks.answer_when_asked()


def train_loader(dataset: Any, lock: Lock, rank: int, targets: Collate) -> Loader:
    """Return the training loader. Its `order.epoch` and `order.first_step` are set before each pass.

    `targets` collates the targets of a micro-batch. Raises R503 if the split cannot fill one global batch, R532 with
    the name of an augmentation that cannot be made.
    """
    order = TrainOrder(len(dataset), lock, rank)
    check_length(len(dataset), lock)
    augment: Any = Augmentation(lock.data.augmentations) if lock.data.augmentations else None
    if augment is not None and lock.tasks:
        augment = PerTask(augment)
    return Loader(dataset, order, lock, rank, targets, augment)


def left_out(length: int, lock: Lock) -> RuntimeFinding | None:
    """Return R577 if an epoch leaves out a large part of `length` samples, else None.

    Raises R503 if the samples cannot fill one global batch.
    """
    batch = lock.training.global_batch_size
    check_length(length, lock)
    capped = lock.training.max_steps_per_epoch is not None  # then an epoch is meant to be a part
    rest = length % batch if lock.training.last_batch == "drop" and not capped else 0
    if rest <= MOST_LEFT_OUT * length:
        return None
    return RuntimeFinding(
        "R577",
        f"`last_batch: drop` leaves out {rest} of {length} training samples in every epoch, others each time:"
        f" the global batch is {batch}; set `training.last_batch: keep`, or a target_batch_size that leaves less over",
    )


def evaluation_loader(dataset: Any, lock: Lock, rank: int, targets: Collate) -> Loader:
    """Return a loader over a whole split, without augmentations. Samples with weight 0 do not count.

    Raises R506 if the split is empty.
    """
    if len(dataset) == 0:
        raise RuntimeFinding("R506", "a split without samples cannot be evaluated", "val and test need samples")
    order = EvaluationOrder(len(dataset), lock.training.micro_batch_size, rank, lock.parallel.world_size)
    return Loader(dataset, order, lock, rank, targets)
