"""Plan -> artifacts: one module per target or format. ``TARGETS`` holds the values of ``--target``."""

from __future__ import annotations

from ratc.diagnostics import Diagnostic
from ratc.plan import Plan
from ratc.targets import accelerate, deepspeed, job, local, lock, lsf, slurm, study
from ratc.targets.artifact import Artifact, Place

TARGETS = {"local": local.files, "slurm": slurm.files, "lsf": lsf.files}
#: The files that a target may have written beside its lock, by name; an array's points lie in a folder of their own.
NAMES = (
    deepspeed.NAME,
    accelerate.NAME,
    job.NODE,
    local.NAME,
    slurm.NAME,
    lsf.NAME,
    job.TABLE,
    study.NAME,
    study.FACTS,
)


def artifacts(target: str, plan: Plan, place: Place) -> tuple[tuple[Artifact, ...] | None, tuple[Diagnostic, ...]]:
    """The files of one run; the lock, which names the others, comes last. Codes: R401, R405."""
    files, found = TARGETS[target](plan, place, None)
    if files is None:
        return None, found
    return (*files, lock.artifact(place, target, plan.values, files)), found
