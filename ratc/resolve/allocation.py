"""What a job needs beside what it asks for, if Ray runs a study in it: the data, and Ray."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.resolve.context import Context


def derive(context: Context) -> Iterator[Diagnostic]:
    """How its trials train is resolved for each of them."""
    context.keep("data.data_dir")
    context.derive("job.launcher", "ray", "Ray runs the study's trials", "spec:tuning.backend")
    yield from ()
