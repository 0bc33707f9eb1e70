"""R202: each attention head of RAT needs an even share of the features, and whole heads are rotated.

The rotary embedding pairs the dimensions of a head as complex numbers (`RoSE.RotarySpatialEmbedding`).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

from ratc.diagnostics import Diagnostic
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that `feature_dims` is a multiple of twice `num_heads`."""
    if settings["model.name"].value != "rat":
        return
    features, heads = settings["model.feature_dims"], settings["model.num_heads"]
    if features.value % (2 * heads.value):
        step = 2 * heads.value
        near = [str(n) for n in (features.value // step * step, -(-features.value // step) * step) if n]
        shares = "an even number of features for each head" if heads.value > 1 else "an even number of features"
        message = f"{features.value} features cannot be split over {heads.value} heads: RAT needs {shares}"
        default = "" if heads.span else f"`model.num_heads` is not given, and its default is {heads.value}"
        fix = f"use `feature_dims` {' or '.join(near)}"
        if features.value % 2 == 0:
            fix += f", or `num_heads` {_largest_divisor(features.value // 2, heads.value)}"
        yield Diagnostic("R202", message, features.span or heads.span, (default,), (fix,))


def _largest_divisor(number: int, most: int) -> int:
    pairs = ((n, number // n) for n in range(1, isqrt(number) + 1) if number % n == 0)
    return max(n for pair in pairs for n in pair if n <= most)
