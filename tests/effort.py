"""How much a property test tries, and until when tests start: on a slow machine, too, the suite ends in time.

`RATC_TEST_EFFORT` multiplies the examples of every property test (default 0.2; 1 is for the night). No test starts
after `RATC_TEST_END` (seconds since 1970); it is skipped then, and says so.
"""

import os
import time

import pytest

#: Why a test did not run.
LATE = "the time for tests was up (RATC_TEST_END)"
_EFFORT = float(os.environ.get("RATC_TEST_EFFORT", "0.2"))
_END = float(os.environ.get("RATC_TEST_END") or "inf")


def examples(most: int) -> int:
    """How many examples a property test tries, of the ``most`` that are worth it."""
    return max(min(most, 10), round(most * _EFFORT))


def skip_if_late() -> None:
    """Skip the running test if the time for tests is up. Long tests ask between their parts."""
    if time.time() > _END:
        pytest.skip(LATE)
