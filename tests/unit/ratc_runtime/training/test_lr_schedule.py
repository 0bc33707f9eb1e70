"""Learning-rate schedules, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ratc_runtime.config.lock import Lock
from ratc_runtime.config.sections import Extension
from ratc_runtime.training.lr_schedule import learning_rate

from tests.helpers.lockfile import lock_with


def test_each_scheduler_gives_its_learning_rates(tmp_path: Path) -> None:
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


def test_added_epochs_restart_the_schedule(tmp_path: Path) -> None:
    def rates(epochs: int, **changes: Any) -> list[float]:
        lock = lock_with(tmp_path, training__epochs=epochs, training__learning_rate=1.0, training__warmup_epochs=0.5)
        training = lock.training.replace(**changes)
        return [learning_rate(training, step, 10) for step in range(10 * epochs)]

    parts = [
        Extension(after=2, learning_rate=0.1, warmup_epochs=0.0),
        Extension(after=3, learning_rate=0.01, warmup_epochs=1),
    ]
    before, all_of_them = rates(2), rates(5, extensions=parts)
    assert all_of_them[:20] == before
    assert all_of_them[20:30] == rates(1, learning_rate=0.1, warmup_epochs=0.0)
    assert all_of_them[30:] == rates(2, learning_rate=0.01, warmup_epochs=1)


def test_a_plan_continues_another_only_if_it_adds_epochs(tmp_path: Path) -> None:
    def plan(epochs: int, scheduler: str = "cosine", **changes: Any) -> Lock:
        lock = lock_with(tmp_path, training__epochs=epochs, training__scheduler=scheduler)
        return lock.replace(training=lock.training.replace(**changes))

    def continues(new: Lock, old: Lock) -> bool:
        return new.continues(old.fingerprint(), old.training.epochs).fingerprint() == old.fingerprint()

    once = [Extension(after=4, learning_rate=0.1, warmup_epochs=0.0)]
    twice = [*once, Extension(after=6, learning_rate=0.01, warmup_epochs=0.0)]
    assert continues(plan(6, extensions=once), plan(4))
    assert continues(plan(8, extensions=twice), plan(6, extensions=once))
    assert continues(plan(8, extensions=twice), plan(4))
    assert not continues(plan(6), plan(4))
    assert not continues(plan(6, extensions=once), plan(5))
    assert not continues(plan(6, extensions=once, betas=[0.5, 0.9]), plan(4))
    for scheduler in ("none", "step"):
        assert continues(plan(6, scheduler), plan(4, scheduler))
        assert not continues(plan(4, scheduler), plan(6, scheduler))
