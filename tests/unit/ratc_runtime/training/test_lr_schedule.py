"""Schedules of the learning rate, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ratc_runtime.training.lr_schedule import learning_rate

from tests.helpers.lockfile import lock_with


def test_schedules(tmp_path: Path) -> None:
    def rates(**changes: Any) -> list[float]:
        training = lock_with(tmp_path, training__epochs=4, training__learning_rate=1.0, **changes).training
        return [learning_rate(training, step, 10) for step in range(40)]

    cosine = rates(training__warmup_epochs=1.0, training__min_learning_rate=0.1)
    assert cosine[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert cosine[10] == pytest.approx(1.0)
    assert cosine[25] == pytest.approx(0.55)
    assert cosine[10:] == sorted(cosine[10:], reverse=True)
    assert 0.1 < cosine[39] < 0.11
    steps = rates(training__scheduler="step", training__step_epochs=2, training__warmup_epochs=0)
    assert steps == pytest.approx([1.0] * 20 + [0.1] * 20)
    assert rates(training__scheduler="none", training__warmup_epochs=0) == [1.0] * 40
