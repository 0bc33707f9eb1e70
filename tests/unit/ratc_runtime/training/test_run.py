"""The rule of early stopping."""

from __future__ import annotations

import pytest
from ratc_runtime.training.run import without_improvement

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "sign", "min_delta", "expected"),
    [
        ([], 1, 0, 0),
        ([0.5], 1, 0, 0),
        ([0.5, 0.6, 0.6, 0.55], 1, 0, 2),
        ([0.5, 0.6, 0.55], -1, 0, 2),
        ([3, 2, 1], -1, 0, 0),
        ([1.0, 1.05, 1.1, 1.15], 1, 0.1, 0),  # slowly, but past the best by more than 0.1 in the end
        ([1.0, 1.05, 1.1], 1, 0.2, 2),
        ([NAN, None, 0.1, NAN], 1, 0, 1),
        ([NAN, NAN], -1, 0, 2),
    ],
)
def test_early_stopping_counts_epochs_without_improvement(
    values: list[float | None], sign: float, min_delta: float, expected: int
) -> None:
    assert without_improvement(values, sign, min_delta) == expected
