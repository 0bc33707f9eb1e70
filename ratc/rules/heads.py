"""R202: each attention head of RAT needs an even share of the features, and whole heads are rotated.

The rotary embedding pairs the dimensions of a head as complex numbers (`RoSE.RotarySpatialEmbedding`).
"""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """`feature_dims` is a multiple of twice `num_heads`."""
    if settings["model.name"].value != "rat":
        return
    features, heads = settings["model.feature_dims"], settings["model.num_heads"]
    if features.value % (2 * heads.value):
        step = 2 * heads.value
        near = [str(n) for n in (features.value // step * step, -(-features.value // step) * step) if n]
        message = f"{features.value} features cannot be split over {heads.value} heads in even shares"
        default = "" if heads.span else f"`num_heads` is {heads.value} where it is not given"
        fewer = next(n for n in range(heads.value, 0, -1) if features.value % (2 * n) == 0 or n == 1)
        fix = f"use `feature_dims` {' or '.join(near)}" + (
            f", or `num_heads` {fewer}" if features.value % (2 * fewer) == 0 else ""
        )
        yield Diagnostic("R202", message, features.span or heads.span, (default,), (fix,))
