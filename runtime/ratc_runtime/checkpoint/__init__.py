"""Checkpoints: complete or absent, and enough to continue a run as if it had not stopped
(docs/concepts/checkpoints.md).

`files` writes and verifies files, `places` names and chooses checkpoints, `header` holds their metadata, `random` is
the state of the generators, `background` writes during training, and `store` is the interface that a run uses.
"""

from __future__ import annotations

from ratc_runtime.checkpoint.header import lock_of, read
from ratc_runtime.checkpoint.random import rng_state, set_rng_state
from ratc_runtime.checkpoint.store import Checkpoints

__all__ = ["Checkpoints", "lock_of", "read", "rng_state", "set_rng_state"]
