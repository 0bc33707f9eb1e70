"""What a submission is made of, without making one: the schedulers' commands and answers, and former submissions.

Pure: `ratc.probe.scheduler` runs the commands, `ratc.cli.submit` reads and writes the record.
"""

from __future__ import annotations

from ratc.submission.dialect import Dialect
from ratc.submission.lsf import Lsf
from ratc.submission.slurm import Slurm

#: The schedulers that jobs can be submitted to, by target.
DIALECTS: dict[str, Dialect] = {"slurm": Slurm(), "lsf": Lsf()}
