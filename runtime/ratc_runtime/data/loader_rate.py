"""The samples that one loader process delivers per second: read, augmented and collated as for training."""

from __future__ import annotations

import time
from typing import Any

import torch

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.loading import Collate, train_loader
from ratc_runtime.data.randomness import all_kept

#: Seconds of reading, by default. Chosen, not measured.
SECONDS = 3.0


def loader_rate(dataset: Any, lock: Lock, targets: Collate, seconds: float = SECONDS) -> float | None:
    """Return the samples per second that one process reads, augments and collates with one thread, as a loader process
    does; None if an epoch has only one sample.

    It reads samples one by one in this process, for `seconds` or for one epoch if that is shorter. Files in the
    system's page cache are read faster than others. The first sample does not count, because the data set may open its
    files then. Raises the errors of `train_loader` and of its loader.
    """
    threads, begun, now, read = torch.get_num_threads(), 0.0, 0.0, -1
    torch.set_num_threads(1)
    try:
        with all_kept():
            for batch in train_loader(dataset, _one_by_one(lock), 0, targets):
                now, read = time.perf_counter(), read + len(batch.names)
                begun = begun or now
                if now - begun > seconds:
                    break
    finally:
        torch.set_num_threads(threads)
    return read / (now - begun) if read > 0 and now > begun else None


def _one_by_one(lock: Lock) -> Lock:
    """Return the lock with micro-batches of one sample, and without loader processes."""
    training, share = lock.training, lock.training.global_batch_size // lock.parallel.world_size
    alone = {"num_workers": 0, "persistent_workers": False, "prefetch_factor": None, "pin_memory": False}
    each = {"micro_batch_size": 1, "gradient_accumulation_steps": share}
    return lock.model_copy(
        update={"data": lock.data.model_copy(update=alone), "training": training.model_copy(update=each)}
    )
