"""Runs of somebody's own models: batch norm with a single sample, outputs and inputs that are mappings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.lockfile import results, run_training, write_data, write_lock
from tests.unit.ratc_runtime.data.test_survey import lock_with

NORM = (
    "import torch\n\n\n"
    "class Net(torch.nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.body = torch.nn.Conv2d(1, 4, 3, padding=1)\n"
    "        self.gate = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))\n"
    "        self.head = torch.nn.Conv2d(4, 1, 1)\n\n"
    "    def forward(self, image):\n"
    "        found = self.body(image)\n"
    "        return self.head(found * self.gate(found.mean((2, 3)))[:, :, None, None])\n\n\n"
    "class Each(Net):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.gate = torch.nn.Linear(4, 4)\n"
    "        self.each = torch.nn.InstanceNorm2d(4)\n\n"
    "    def forward(self, image):\n"
    "        return super().forward(image) + self.each(self.body(image).mean((2, 3), keepdim=True)).mean()\n\n\n"
    "class Dict(Net):\n"
    "    def forward(self, image):\n"
    "        return {'out': super().forward(image), 'aux': None}\n"
)


def own_model(folder: Path, name: str, **changes: Any) -> Path:
    (folder / "own.py").write_text(NORM)
    model = {"name": f"own:{name}", "multi_scale": False, "args": {}, "attention_memory": "full"}
    return write_lock(folder / "compiled", model=model, **changes)


def test_a_last_batch_of_one_sample_for_batch_norm_is_refused_at_the_start(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=9)
    told = run_training(own_model(tmp_path, "Net", training__last_batch="keep"))
    assert told.returncode == 1
    assert "error[R575]: module `gate.1` (BatchNorm1d)" in told.stderr
    assert "last_batch: drop" in told.stderr
    assert "Traceback" not in told.stderr
    assert "step 1/" not in told.stdout
    told = run_training(own_model(tmp_path, "Net", training__last_batch="drop"))
    assert told.returncode == 0, told.stderr


def test_batch_norm_with_micro_batches_of_one_is_named_too(project: Path) -> None:
    one = {"training__micro_batch_size": 1, "training__gradient_accumulation_steps": 4}
    told = run_training(own_model(project, "Net", **one))
    assert told.returncode == 1
    assert "error[R575]: module `gate.1` (BatchNorm1d)" in told.stderr
    assert "Traceback" not in told.stderr


def test_instance_norm_of_one_value_is_named(project: Path) -> None:
    told = run_training(own_model(project, "Each"))
    assert told.returncode == 1
    assert "error[R575]: module `each` (InstanceNorm2d) cannot normalise a sample" in told.stderr
    assert "larger data.image_size" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_model_that_returns_a_mapping_is_refused_with_its_keys(project: Path) -> None:
    told = run_training(own_model(project, "Dict"))
    assert told.returncode == 1
    assert "error[R574]: the model returns a mapping with the keys `out`, `aux`" in told.stderr
    assert "`model: {output: out}`" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_key_of_the_logits_may_be_named(project: Path) -> None:
    model = {"name": "own:Dict", "multi_scale": False, "args": {}, "attention_memory": "full"}
    (project / "own.py").write_text(NORM)
    told = run_training(write_lock(project / "compiled", model={**model, "output": "logits"}))
    assert told.returncode == 1
    assert "the keys `out`, `aux`, and the lock's model.output is `logits`" in told.stderr
    told = run_training(write_lock(project / "compiled", model={**model, "output": "out"}))
    assert told.returncode == 0, told.stderr
    assert results(project / "out")["test"]["dice"] is not None
    assert lock_with(model=model).fingerprint() != lock_with(model={**model, "output": "out"}).fingerprint()
    assert lock_with(model=model).fingerprint() == lock_with(model={**model, "output": None}).fingerprint()


def test_a_custom_task_may_take_a_mapping_as_its_input(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n\n\n"
        "class Data(torch.utils.data.Dataset):\n"
        "    def __init__(self, data_dir, split):\n"
        "        self.length = 8\n\n"
        "    def __len__(self):\n"
        "        return self.length\n\n"
        "    def __getitem__(self, index):\n"
        "        one = torch.full((3,), index / 8)\n"
        "        return {'image': {'left': one, 'right': [one, one]}, 'target': one.sum()}\n\n\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.line = torch.nn.Linear(3, 1)\n\n"
        "    def forward(self, given):\n"
        "        return self.line(given['left'] + given['right'][1])[:, 0]\n\n\n"
        "def loss():\n"
        "    return torch.nn.functional.mse_loss\n"
    )
    lock = write_lock(
        tmp_path / "compiled",
        task_type="custom",
        model={"name": "own:Net", "multi_scale": False, "args": {}, "attention_memory": "full"},
        data__dataset="own:Data",
        training__loss={"name": "own:loss", "args": {}},
        checkpoint__best_metric="loss",
    )
    told = run_training(lock)
    assert told.returncode == 0, told.stderr
    assert results(tmp_path / "out")["status"] == "finished"
    assert results(tmp_path / "out")["test"]["samples"] == 8
    again = run_training(lock)
    assert again.returncode == 0, again.stderr
