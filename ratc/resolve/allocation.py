"""The values of a job in which Ray runs a study, beside its resources: the data, and Ray as launcher."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.resolve.context import Context


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive the job's values only: each trial is resolved by itself."""
    context.keep("data.data_dir")
    context.derive("job.launcher", "ray", "Ray runs the study's trials", "spec:tuning.backend")
    yield from ()
