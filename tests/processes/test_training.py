"""A whole run in a process of its own, and the files that it writes."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment, results, run_training, train_command, write_data, write_lock


def test_a_run_writes_results_checkpoints_and_plots(project: Path) -> None:
    lock = write_lock(
        project / "compiled",
        training__epochs=12,
        training__learning_rate=0.01,
        logging__mlflow=True,
        logging__tensorboard=True,
        data__num_workers=1,
        data__persistent_workers=True,
        data__prefetch_factor=2,
    )
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    out = project / "out"
    found = results(out)
    assert found["status"] == "finished"
    assert [record["epoch"] for record in found["epochs"]] == list(range(1, 13))
    assert found["epochs"][-1]["train_loss"] < 0.8 * found["epochs"][0]["train_loss"]
    assert found["epochs"][found["best_epoch"] - 1]["val_dice"] == max(r["val_dice"] for r in found["epochs"])
    assert found["test"]["dice"] > found["baseline"]["dice"]
    assert found["test"]["samples"] == 3
    assert found["lock_sha256"].startswith("sha256:")
    assert found["samples_per_second"] > 0

    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [n for item in value.values() for n in numbers(item)]
        if isinstance(value, list):
            return [n for item in value for n in numbers(item)]
        return [value] if isinstance(value, float) else []

    assert all(math.isfinite(number) for number in numbers(found))
    text = (out / "results.json").read_text()
    assert text == json.dumps(found, indent=2, sort_keys=True) + "\n"

    kept = {f"epoch-{epoch:04}-step-000000.pt" for epoch in (11, 12, found["best_epoch"])}
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"last.pt", "best.pt", *kept}
    assert (out / "checkpoints/last.pt").resolve().name == "epoch-0012-step-000000.pt"
    assert (out / "checkpoints/best.pt").resolve().name == f"epoch-{found['best_epoch']:04}-step-000000.pt"
    assert {path.name for path in (out / "overlays").iterdir()} == {f"test{i}.png" for i in range(3)}
    for picture in [out / "curves.png", *(out / "overlays").iterdir()]:
        with Image.open(picture) as image:
            assert min(image.size) > 300
    assert any((out / "tensorboard").iterdir())
    with sqlite3.connect(out / "mlflow.db") as store:
        assert store.execute("select status, name from runs").fetchall() == [("FINISHED", "tiny")]
        params = dict(store.execute("select key, value from params").fetchall())
        assert params["training.learning_rate"] == "0.01"
        dice = store.execute("select step, value from metrics where key = 'val/dice' order by step").fetchall()
    assert [value for _, value in dice] == [record["val_dice"] for record in found["epochs"]]
    assert "epoch 12/12" in done.stdout
    assert "test Dice" in done.stdout

    again = run_training(lock)
    assert again.returncode == 0
    assert "already finished" in again.stdout
    assert (out / "results.json").read_text() == text

    shutil.rmtree(project / "data")
    without = run_training(lock)
    assert without.returncode == 0, without.stderr
    assert "already finished" in without.stdout
    assert "its data is no longer needed" in without.stdout


def test_fresh_trains_again_and_keeps_the_old_checkpoints(project: Path) -> None:
    lock = write_lock(project / "compiled", training__epochs=1)
    assert run_training(lock).returncode == 0
    first = (project / "out/checkpoints/last.pt").stat().st_ino
    again = run_training(lock, "--fresh")
    assert again.returncode == 0, again.stderr
    assert "epoch 1/1" in again.stdout
    assert (project / "out/checkpoints.previous/last.pt").stat().st_ino == first


def test_a_run_without_its_checkpoints_warns_that_it_starts_over(project: Path) -> None:
    lock = write_lock(project / "compiled", training__epochs=1, training__max_steps_per_epoch=1)
    first = run_training(lock)
    assert first.returncode == 0, first.stderr
    assert "left no checkpoint" not in first.stderr
    shutil.rmtree(project / "out/checkpoints")
    (project / "out/results.json").unlink()
    again = run_training(lock)
    assert again.returncode == 0, again.stderr
    assert "earlier starts of this run left no checkpoint" in again.stderr
    assert "training starts from the beginning" in again.stderr


def test_folders_of_options_override_variables_and_the_lock(tmp_path: Path) -> None:
    write_data(tmp_path / "elsewhere")
    lock = write_lock(tmp_path / "compiled", training__epochs=1, training__max_steps_per_epoch=1)
    done = run_training(
        lock, "--output-dir", "named", RAT_DATA_DIR=str(tmp_path / "elsewhere"), RAT_OUTPUT_DIR="variable"
    )
    assert done.returncode == 0, done.stderr
    assert "1 epoch of 1 step" in done.stdout
    assert results(tmp_path / "named")["status"] == "finished"
    assert not (tmp_path / "variable").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"training__precision": "bf16"},
        {"training__activation_checkpointing": True, "engine__use_accelerate": True},
        {
            "training__scheduler": "none",
            "training__gradient_clipping": None,
            "training__loss": {"name": "dice", "args": {}},
        },
    ],
    ids=["bf16", "accelerate-recomputing", "plain"],
)
def test_a_run_trains_with_bf16_recomputing_or_plain_settings(project: Path, changes: dict[str, Any]) -> None:
    done = run_training(write_lock(project / "compiled", training__epochs=1, **changes))
    assert done.returncode == 0, done.stderr
    assert results(project / "out")["status"] == "finished"


def test_a_multi_scale_model_trains_on_pyramids_of_colour_images(tmp_path: Path) -> None:
    write_data(tmp_path / "data", mode="RGB", size=48)
    lock = write_lock(tmp_path / "compiled", training__epochs=1, data__channels=3, data__scales=[1.0, 0.5])
    content = (
        lock.read_text()
        .replace("multi_scale: false", "multi_scale: true")
        .replace("input_features: 1", "input_features: 3")
    )
    lock.write_text(content)
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out")["status"] == "finished"


OWN = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, width, 3, padding=1), torch.nn.ReLU(),
                                          torch.nn.Conv2d(width, 1, 1))
    def forward(self, image):
        return self.layers(image)

class Squares(torch.utils.data.Dataset):
    def __init__(self, data_dir, split, count):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        target = torch.zeros(1, 16, 16)
        target[:, index % 8 : index % 8 + 6, 2:9] = 1
        return {"image": target * 0.7, "target": target}

def squared():
    return lambda logits, target: ((logits.sigmoid() - target) ** 2).mean()
"""


def test_a_run_trains_the_user_s_model_data_and_loss(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    lock = write_lock(
        tmp_path / "compiled",
        model={"name": "mine:Net", "multi_scale": False, "args": {"width": 4}, "attention_memory": "full"},
        data__dataset="mine:Squares",
        data__args={"count": 9},
        training__loss={"name": "mine:squared", "args": {}},
        data__image_size=[16, 16],
        training__epochs=1,
    )
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out")["test"]["samples"] == 9


def test_a_run_without_stderr_trains(project: Path) -> None:
    """A daemon may start a run with `2>&-`. Its loader processes register their stacks with stderr all the same."""
    lock = write_lock(
        project / "compiled",
        training__epochs=1,
        data__num_workers=1,
        data__persistent_workers=True,
        data__prefetch_factor=2,
    )
    command = f"exec {shlex.join(train_command(lock))} 2>&-"
    done = subprocess.run(
        ["sh", "-c", command], cwd=project, env=environment(), stdout=subprocess.PIPE, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stdout
    assert results(project / "out")["status"] == "finished"
