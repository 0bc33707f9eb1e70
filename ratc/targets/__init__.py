"""Plan -> artifacts: one file a target or a format. ``TARGETS`` names what ``--target`` takes."""

from __future__ import annotations

from ratc.targets import local

TARGETS = {"local": local.artifacts}
#: Targets that the design knows and this version does not emit.
PLANNED = ("slurm", "lsf")
