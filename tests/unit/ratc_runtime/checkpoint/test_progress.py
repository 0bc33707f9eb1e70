"""A checkpoint that is intact by its digest, but that no run can have written, is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.checkpoint import Checkpoints, files
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output import run_history

from tests.helpers.lockfile import BASE
from tests.helpers.packages import EIGHT_BITS
from tests.unit.ratc_runtime.checkpoint.test_checkpoint import make, save, train

NAN = float("nan")
RECORD = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "learning_rate": 0.1, "seconds": 1.0}
WRONG: dict[str, tuple[tuple[Any, ...], list[Any]]] = {
    "epoch": (("progress", "epoch"), [-1, 7, 10**12, True, 1.0]),
    "step": (("progress", "step"), [-1, "x", True]),
    "loss": (("progress", "loss_sum"), ["x", NAN, None]),
    "history": (
        ("progress", "history"),
        [[], None, "x", [1], [{}], [{"epoch": 1}], [{**RECORD, "epoch": 2}], [{**RECORD, "val_dice": "high"}]],
    ),
    "best": (("progress", "best_epoch"), [99, "x", -1, 0]),
    "lost": (("progress", "lost"), [None, ["x"], [9]]),
    "tracker": (("progress", "tracking_id"), [5, "../../x", "a\n", "0" * 32 + "\n", ""]),
    "skipped": (("progress", "skipped"), [None, 5, [5]]),
    "changes": (("progress", "data_changes"), [None, 5]),
    "account": (("progress", "account"), [None, {"x": "a"}, {"x": NAN}]),
    "unknown": (("progress", "unknown"), [1]),
    "seconds": (("progress", "total_seconds"), ["x", None, float("inf"), -1e9]),
    "random": (("rng",), [None, [], [{}, {}], "x"]),
    "processes": (("world_size",), [0, -1, 2, True]),
    "optimizer": (("optimizer",), [None, {}, {"state": {}, "param_groups": []}]),
    "states": (("optimizer", "state"), [{}, {999: {}}, None]),
    "moments": (("optimizer", "state", 0, "exp_avg"), [torch.zeros(1), torch.zeros(4, 3).to_sparse(), "x", 5]),
    "steps": (("optimizer", "state", 0, "step"), [torch.tensor(NAN), "x", torch.tensor(-5.0), torch.zeros(2)]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoints, Path, Any]:
    """The checkpoints of a run with one, which each case replaces by a changed copy."""
    checkpoints = make(tmp_path_factory.mktemp("run"))
    save(checkpoints, 1, 1, tracking_id="0" * 32, best_epoch=1)
    path = checkpoints.path("last").resolve()
    return checkpoints, path, torch.load(path, weights_only=True)


def written(path: Path, whole: Any, change: Callable[[Any], None]) -> None:
    content = copy.deepcopy(whole)
    change(content)
    files.write_file(path, content)


@pytest.mark.parametrize("name", WRONG)
def test_progress_that_no_run_can_have_written_is_refused(name: str, saved: tuple[Checkpoints, Path, Any]) -> None:
    checkpoints, path, whole = saved
    keys, values = WRONG[name]
    for value in values:

        def change(content: Any, value: Any = value) -> None:
            for key in keys[:-1]:
                content = content[key]
            content[keys[-1]] = value

        written(path, whole, change)
        with pytest.raises(RuntimeFinding) as raised:
            checkpoints.load_last()
        assert raised.value.code == "R508", value


def test_an_unchanged_checkpoint_is_continued(saved: tuple[Checkpoints, Path, Any]) -> None:
    checkpoints, path, whole = saved
    written(path, whole, lambda content: None)
    assert checkpoints.load_last() == whole["progress"]


@pytest.mark.parametrize("name", ["../../elsewhere", 5, "", None])
def test_an_edited_run_id_is_replaced(name: Any, tmp_path: Path) -> None:
    first = run_history.RunHistory(tmp_path, "f", False, None, 0, 0)
    path = tmp_path / run_history.FILE
    path.write_text(path.read_text().replace(f'"{first.run_id}"', json.dumps(name)))
    again = run_history.RunHistory(tmp_path, "f", False, None, 0, 0)
    assert again.run_id != name
    assert len(again.run_id) == 32


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "adam"},
        {"optimizer": "adamw"},
        {"optimizer": "adafactor"},
        {"optimizer": "muon", "momentum": 0.95},
        {"optimizer": "lion", "betas": [0.9, 0.99]},
        pytest.param({"optimizer": "adamw_8bit"}, marks=EIGHT_BITS),
        pytest.param({"optimizer": "lion_8bit"}, marks=EIGHT_BITS),
        {"optimizer": "torch.optim:Rprop"},
        {"optimizer": "torch.optim:Adam", "optimizer_args": {"amsgrad": True}},
    ],
)
def test_every_progress_that_a_run_writes_is_continued(training: dict[str, Any], tmp_path: Path) -> None:
    changes = {"training": {**BASE["training"], **training}}
    checkpoints = make(tmp_path, **changes)
    train(checkpoints, 2)
    for place in ((0, 1), (1, 0), (1, 1)):
        assert save(checkpoints, *place)
        found = make(tmp_path, **changes).load_last()
        assert found is not None
        assert (found["epoch"], found["step"]) == place
