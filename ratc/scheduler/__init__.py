"""Schedulers: their commands and answers, the client that runs them, and former submissions.

Only `client`, `history` and `wait` do I/O.
"""

from __future__ import annotations

from ratc.scheduler.dialect import Dialect
from ratc.scheduler.lsf import Lsf
from ratc.scheduler.slurm import Slurm

#: The schedulers that jobs can be submitted to, by target.
DIALECTS: dict[str, Dialect] = {"slurm": Slurm(), "lsf": Lsf()}
