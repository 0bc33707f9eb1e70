"""UnifiedTrainer: the user's own parts, with a lock, a compiled folder, a spec or a mapping."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.effort import HANGS_S
from tests.helpers.lockfile import BASE, environment, results, run_forked, run_training, write_data, write_lock

BRING = """
import json, sys
from pathlib import Path

import torch
from torch import nn

from ratc_runtime.callbacks import Callback
from ratc_runtime.trainer import UnifiedTrainer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, image):
        return self.layer(image[0] if isinstance(image, list) else image)


class Discs(torch.utils.data.Dataset):
    '''Items of each kind that a data set may give.'''

    def __init__(self, count, kind):
        self.count, self.kind = count, kind

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        target = torch.zeros(1, 16, 16)
        target[:, index % 8 : index % 8 + 6, 2:9] = 1
        if self.kind == "pair":
            return target.numpy() * 0.7, target.numpy()
        if self.kind == "pyramid":
            return {"image": [target * 0.7, target[:, ::2, ::2] * 0.7], "target": target, "name": f"disc {index}"}
        return {"image": target * 0.7, "target": target}


class Squared(nn.Module):
    def forward(self, outputs, targets):
        return ((outputs.sigmoid() - targets) ** 2).mean()


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def start(self, run):
        self.seen.append("start")

    def step(self, run, loss):
        self.seen.append(round(loss, 6))

    def epoch(self, run, record):
        self.seen.append(record["val_loss"])

    def finish(self, run, results):
        self.seen.append(results.get("status"))


def absolute(outputs, targets):
    return float((outputs.sigmoid() - targets).abs().mean())


watch = Watch()
config, kind, scored = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3] == "scored"
found = UnifiedTrainer(
    config=config,
    model=Net(),
    train_dataset=Discs(9, kind),
    val_dataset=Discs(3, kind),
    test_dataset=Discs(3, kind) if scored else None,
    criterion=Squared(),
    output_dir="made",
    experiment_name=sys.argv[4] if len(sys.argv) > 4 else None,
    scores={"closeness": lambda outputs, targets: 1 - absolute(outputs, targets)} if scored else None,
    callbacks=[watch],
).train()
print(json.dumps({"seen": watch.seen, "results": found}))
"""
SMALL = {
    "training": {"epochs": 2, "batch_size": 2, "target_batch_size": 4, "use_accelerate": False},
    "data": {"image_size": 16, "channels": 1, "num_workers": 0},
    "logging": {"backend": "none", "use_mlflow": False},
    "resources": {"num_gpus": 0, "cpus": 1},
}


def bring(folder: Path, config: Any, *words: str) -> dict[str, Any]:
    (folder / "bring.py").write_text(BRING)
    done = run_forked("bring.py", folder, json.dumps(config), *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_mapping_is_compiled_and_the_user_s_parts_are_trained(tmp_path: Path) -> None:
    found = bring(tmp_path, {**SMALL, "task_type": "segmentation"}, "pair", "plain", "discs")
    start, *steps, end = found["seen"]
    assert (start, end) == ("start", "finished")
    assert len(steps) == 2 * (2 + 1)
    told = found["results"]
    assert told == results(tmp_path / "made")
    assert told["experiment_name"] == "discs"
    assert {"val_dice", "val_iou", "val_loss"} <= told["epochs"][0].keys()
    assert steps[2] == told["epochs"][0]["val_loss"]
    assert "test" not in told, "nobody brought data for it"
    assert (tmp_path / "made/spec.yaml").is_file()
    assert (tmp_path / "made/compiled/discs/local/run.sh").is_file()


def test_custom_scores_work_with_pyramids(tmp_path: Path) -> None:
    lock = write_lock(
        tmp_path / "compiled", data__image_size=[16, 16], training__epochs=1, checkpoint__best_metric="loss"
    )
    found = bring(tmp_path, str(lock.parent), "pyramid", "scored")["results"]
    assert 0 < found["test"]["closeness"] < 1
    assert found["epochs"][0]["val_closeness"] == pytest.approx(found["test"]["closeness"]), "the same discs"
    assert "val_dice" not in found["epochs"][0]
    assert found["test"]["samples"] == 3


def test_a_spec_that_does_not_compile_is_refused_with_its_findings(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("experiment_name: x\ndata: {data_dir: data}\ntraining: {epocs: 3}\n")
    code = "from ratc_runtime.trainer import UnifiedTrainer; UnifiedTrainer('spec.yaml').train()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 1
    assert "error[R544]" in done.stderr
    assert "spec.yaml:3:" in done.stderr
    assert "epochs" in done.stderr


HOSTILE = """
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.trainer import UnifiedTrainer

for config in ("nowhere", "a\\0b", "", "/dev/zero", {"training": {"epochs": object()}}, None, 3, b"x", ["x"]):
    try:
        UnifiedTrainer(config).train()
    except (RuntimeFinding, TypeError) as error:
        print(getattr(error, "code", "TypeError"))
"""


def test_an_invalid_configuration_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["R505"] * 4 + ["R544"] + ["TypeError"] * 4
    assert not (tmp_path / "outputs").exists()


def test_a_training_data_set_without_the_others_is_refused() -> None:
    from ratc_runtime.trainer import UnifiedTrainer

    with pytest.raises(ValueError, match="go together"):
        UnifiedTrainer("lock.yaml", train_dataset=[1])


CUSTOM = """
import torch
from ratc_runtime.callbacks import Callback

class Numbers(torch.utils.data.Dataset):
    def __init__(self, data_dir, split):
        self.length = {"train": 8, "val": 4, "test": 2}[split]
    def __len__(self):
        return self.length
    def __getitem__(self, index):
        x = torch.full((1, 1, 1), float(index))
        return {"image": x, "target": {"twice": x * 2, "negative": -x}}

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleDict({name: torch.nn.Conv2d(1, 1, 1) for name in ("twice", "negative")})
    def forward(self, image):
        return {name: layer(image) for name, layer in self.layers.items()}

def squared():
    return lambda outputs, targets: sum(((outputs[k] - targets[k]) ** 2).mean() for k in targets)

class Note(Callback):
    def finish(self, run, results):
        print("noted", results["status"])
"""


def test_a_custom_task_is_built_from_names_in_the_lock(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CUSTOM)
    lock = write_lock(
        tmp_path / "compiled",
        task_type="custom",
        model={"name": "mine:Two", "multi_scale": False, "args": {}, "attention_memory": "full"},
        data__dataset="mine:Numbers",
        training__loss={"name": "mine:squared", "args": {}},
        training__callbacks=["mine:Note"],
        training__epochs=2,
        checkpoint__best_metric="loss",
    )
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "out")
    assert found["test"].keys() == {"loss", "samples"}
    assert found["epochs"][1]["train_loss"] < found["epochs"][0]["train_loss"]
    assert "test loss" in done.stdout
    assert "noted finished" in done.stdout
    assert (tmp_path / "out/curves.png").is_file()


def test_a_callback_that_would_never_be_called_is_refused(tmp_path: Path) -> None:
    """With another library's names for its methods, say."""
    hook = "class Note(Callback):\n    def on_epoch_end(self, run, record): print('never')\n"
    (tmp_path / "mine.py").write_text(f"from ratc_runtime.callbacks import Callback\n{hook}")
    done = run_training(write_lock(tmp_path / "compiled", training__callbacks=["mine:Note"]))
    assert done.returncode == 1
    assert "error[R509]: callback mine:Note (Note) defines none of start, step, epoch, finish" in done.stderr


ON_TWO = """
import os
from ratc_runtime.callbacks import Callback
from ratc_runtime.trainer import UnifiedTrainer

class Note(Callback):
    def finish(self, run, results):
        os.write(1, f"noted {os.environ['RANK']} {results['status']}\\n".encode())

found = UnifiedTrainer("compiled/lock.yaml", callbacks=[Note()]).train()
os.write(1, f"returned {os.environ['RANK']} {found['status']} {found['best_epoch']}\\n".encode())
"""


@pytest.mark.slow
def test_every_rank_gets_the_results(tmp_path: Path) -> None:
    two = {**BASE["parallel"], "world_size": 2, "processes_per_node": 2}
    write_lock(tmp_path / "compiled", parallel=two, training__micro_batch_size=1, training__epochs=1)
    (tmp_path / "two.py").write_text(ON_TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "two.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    said = sorted(line for line in done.stdout.splitlines() if line.startswith(("noted", "returned")))
    assert said == ["noted 0 finished", "noted 1 finished", "returned 0 finished 1", "returned 1 finished 1"]


@pytest.fixture(autouse=True)
def _data_where_a_lock_says(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
