"""More epochs for a finished run: kept results, trained epochs, and refused extensions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.checkpoint.weights import load_weights

from tests.helpers.lockfile import BASE, results, run_training, write_data, write_lock

#: With a learning rate that is the same in all epochs, without warm-up, and with the cosine schedule.
CONSTANT = {"scheduler": "none", "warmup_epochs": 0.0}
COSINE = {"scheduler": "cosine", "warmup_epochs": 0.0}


def plan(folder: Path, epochs: int, **changes: Any) -> Path:
    return write_lock(folder / f"plan-{epochs}", training={**BASE["training"], "epochs": epochs, **changes})


@pytest.fixture(scope="module", params=[CONSTANT, COSINE], ids=["constant", "cosine"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of one epoch, in `out`, and the schedule that it had."""
    folder = tmp_path_factory.mktemp("finished")
    write_data(folder / "data", train=4)
    done = run_training(plan(folder, 1, **request.param), "--output-dir", "out")
    assert done.returncode == 0, done.stderr
    return folder, request.param


def test_an_extended_run_has_the_result_of_the_longer_plan(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, schedule = finished
    shutil.copytree(folder, tmp_path / "copy")
    added = [{"after": 1, "learning_rate": 0.001, "warmup_epochs": 0.0}]
    parts = {} if schedule == CONSTANT else {"extensions": added}
    longer = plan(tmp_path / "copy", 2, **schedule, **parts)
    done = run_training(longer, "--output-dir", "out")
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 1, step 0" in done.stdout
    whole = run_training(longer, "--output-dir", "whole")
    assert whole.returncode == 0, whole.stderr
    ours, theirs = (load_weights(tmp_path / "copy" / name / "checkpoints/last.pt") for name in ("out", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rates = [epoch["learning_rate"] for epoch in results(tmp_path / "copy/out")["epochs"]]
    assert rates == [epoch["learning_rate"] for epoch in results(tmp_path / "copy/whole")["epochs"]]
    assert len(rates) == 2
    # What the shorter plan came to is kept, and its plan no longer fits the folder.
    assert (tmp_path / "copy/out/results.previous.json").exists()
    back = run_training(plan(tmp_path / "copy", 1, **schedule), "--output-dir", "out")
    assert "error[R518]" in back.stderr


@pytest.mark.parametrize("finished", [COSINE], ids=["cosine"], indirect=True)
def test_a_finished_cosine_schedule_cannot_be_extended(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    done = run_training(plan(folder, 3, **COSINE), "--output-dir", "out")
    assert "error[R518]" in done.stderr
    assert "add `training.extensions: [{after: 1}]` and compile again" in done.stderr
