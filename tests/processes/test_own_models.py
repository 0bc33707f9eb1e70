"""Runs of custom models: batch norm with a single sample, inputs and outputs that are mappings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ratc_runtime.commands import evaluate, predict

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


def test_r575_for_batch_norm_with_a_last_batch_of_one_sample(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=9)
    told = run_training(own_model(tmp_path, "Net", training__last_batch="keep"))
    assert told.returncode == 1
    assert "error[R575]: module `gate.1` (BatchNorm1d)" in told.stderr
    assert "last_batch: drop" in told.stderr
    assert "Traceback" not in told.stderr
    assert "step 1/" not in told.stdout
    told = run_training(own_model(tmp_path, "Net", training__last_batch="drop"))
    assert told.returncode == 0, told.stderr


def test_r575_for_batch_norm_with_micro_batches_of_one_sample(project: Path) -> None:
    one = {"training__micro_batch_size": 1, "training__gradient_accumulation_steps": 4}
    told = run_training(own_model(project, "Net", **one))
    assert told.returncode == 1
    assert "error[R575]: module `gate.1` (BatchNorm1d)" in told.stderr
    assert "Traceback" not in told.stderr


def test_r575_for_instance_norm_of_a_single_value(project: Path) -> None:
    told = run_training(own_model(project, "Each"))
    assert told.returncode == 1
    assert "error[R575]: module `each` (InstanceNorm2d) cannot normalise a sample" in told.stderr
    assert "larger data.image_size" in told.stderr
    assert "Traceback" not in told.stderr


def test_r574_names_the_keys_of_a_mapping_that_the_model_returns(project: Path) -> None:
    told = run_training(own_model(project, "Dict"))
    assert told.returncode == 1
    assert "error[R574]: the model returns a mapping with the keys `out`, `aux`" in told.stderr
    assert "`model: {output: out}`" in told.stderr
    assert "Traceback" not in told.stderr


def test_model_output_names_the_key_of_the_logits(project: Path) -> None:
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


WORDS = """\
import torch


class Lines(torch.utils.data.Dataset):
    "Counts upwards from a number, modulo 8, of different lengths: the next number follows from the last one."

    def __init__(self, data_dir, split, tokens):
        self.length, self.tokens = {"train": 48, "val": 8, "test": 6}[split], tokens

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        ids = (torch.arange(self.tokens) + index) % 8
        mask = torch.arange(self.tokens) < self.tokens - index % 3
        labels = ids.masked_fill(~mask, -100)
        return {"image": {"input_ids": ids, "attention_mask": mask.long()}, "target": {"labels": labels}}


def loss():
    def next_token(output, target):
        logits, labels = output["logits"][:, :-1], target["labels"][:, 1:]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    return next_token


def right():
    def share(output, target):
        labels = target["labels"][..., 1:]
        known = labels != -100
        return float((output["logits"].argmax(-1)[..., :-1] == labels)[known].float().mean())

    return share
"""


def test_a_language_model_of_mappings_is_trained_scored_and_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with batches of the Trainer: dictionaries in, dictionaries out, in training, evaluation and prediction."""
    (tmp_path / "words.py").write_text(WORDS)
    lock = write_lock(
        tmp_path / "compiled",
        task_type="custom",
        model={
            "name": "transformers:GPT2Config",
            "multi_scale": False,
            "args": {"vocab_size": 8, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
            "attention_memory": "full",
        },
        data__dataset="words:Lines",
        data__args={"tokens": 12},
        training__loss={"name": "words:loss", "args": {}},
        training__learning_rate=0.02,
        training__epochs=3,
        evaluation={"hausdorff": False, "scores": {"right": "words:right"}},
        checkpoint__best_metric="right",
    )
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "out")
    losses = [epoch["train_loss"] for epoch in found["epochs"]]
    assert losses[-1] < 0.5 * losses[0]
    assert found["test"]["right"] > 0.9
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert evaluate.main(["out", "--trust", "--device", "cpu", "-o", "scores.json"]) == 0
    scores = json.loads(Path("scores.json").read_text())["scores"]
    assert {name: scores[name] for name in ("right", "loss")} == pytest.approx(
        {name: found["test"][name] for name in ("right", "loss")}, rel=1e-5
    )
    assert predict.main(["out", "--split", "test", "-o", "predicted", "--trust", "--device", "cpu"]) == 0
    written = sorted(Path("predicted").iterdir())
    assert len(written) == 6
    assert np.load(written[0])["logits"].shape == (12, 8)
