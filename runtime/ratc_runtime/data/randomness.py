"""Random numbers of one sample: a function of seed, epoch and position alone.

They do not depend on the process that loads a sample or on earlier samples. So an epoch is the same for any number of
loader processes and ranks, and a run that resumes within an epoch gets the same samples.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def sample_seed(seed: int, epoch: int, position: int) -> int:
    """Return the seed, 63 bits, of a sample's random numbers. Similar arguments give unrelated seeds."""
    packed = struct.pack("<QQQ", seed, epoch, position)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, which torchvision draws from, and restore it afterwards.

    Not `torch.manual_seed`: that would seed the GPUs too, and with them the model's dropout.
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def seed_all(seed: int) -> None:
    """Seed the generators that a data set of the user's may use: torch's CPU generator, NumPy and `random`."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def all_kept() -> Iterator[None]:
    """Restore the generators of `seed_all` afterwards. NumPy takes 0.1 ms for that: once a batch, not once a sample."""
    before = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


class Drawn:
    """Detects whether random numbers were drawn since it was made."""

    def __init__(self) -> None:
        self._before = self._states()

    def has_changed(self) -> bool:
        """Return whether a generator's state has changed."""
        return self._states() != self._before

    @staticmethod
    def _states() -> tuple[Any, ...]:
        numpy = np.random.get_state(legacy=False)  # of any generator: a program may have set another one
        inner = {key: one.tobytes() if isinstance(one, np.ndarray) else one for key, one in numpy["state"].items()}
        state = torch.default_generator.get_state().numpy().tobytes()
        return random.getstate(), {**numpy, "state": inner}, state
