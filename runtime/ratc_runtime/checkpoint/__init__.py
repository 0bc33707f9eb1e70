"""Checkpoints: whole or not there; a run continues from one as if not stopped (docs/concepts/checkpoints.md).

`files` writes and proves files, `places` names and chooses checkpoints, `header` says what one was made of, `random`
is the state of the generators, `background` writes while training goes on, and `store` is what a run works with.
"""

from __future__ import annotations

from ratc_runtime.checkpoint.header import lock_of, read
from ratc_runtime.checkpoint.random import rng_state, set_rng_state
from ratc_runtime.checkpoint.store import Checkpoints

__all__ = ["Checkpoints", "lock_of", "read", "rng_state", "set_rng_state"]
