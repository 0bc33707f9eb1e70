"""How much the tests try, and until when they start: on a slow machine, too, the suite ends in time.

`RATC_TEST_EFFORT` is the part of the examples that a property test tries, and of the parameters that a slow test takes
(default 0.2; 1 is for the night and before a release). No test starts after `RATC_TEST_END` (seconds since 1970); it is
skipped then, and says so.
"""

import math
import os
import time
from collections.abc import Sequence
from typing import TypeVar

import pytest

#: Why a test did not run.
LATE = "the time for tests was up (RATC_TEST_END)"
#: How the reason begins where a test finds no Slurm.
NO_SLURM = "the Slurm cluster"
_EFFORT = float(os.environ.get("RATC_TEST_EFFORT", "0.2"))
_END = float(os.environ.get("RATC_TEST_END") or "inf")

#: Seconds that only a process that hangs takes: on a slow machine the import of torch alone may take a minute.
HANGS_S = 900.0

Item = TypeVar("Item")


def examples(most: int) -> int:
    """How many examples a property test tries, of the ``most`` that are worth it."""
    return max(min(most, 5), round(most * _EFFORT))


def part_of(items: Sequence[Item], effort: float = _EFFORT) -> list[Item]:
    """The part of ``items`` that is tried, at least one, spread evenly and always the same."""
    count = min(len(items), max(1, math.ceil(len(items) * effort)))
    return [items[number * len(items) // count] for number in range(count)]


def skip_if_late() -> None:
    """Skip the running test if the time for tests is up. Long tests ask between their parts."""
    if time.time() > _END:
        pytest.skip(LATE)
