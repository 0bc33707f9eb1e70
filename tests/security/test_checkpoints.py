"""Checkpoints from strangers: intact by their digest, with hostile content."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ratc_runtime import inference
from ratc_runtime.checkpoint import files, header, weights
from ratc_runtime.commands import evaluate, export, predict
from ratc_runtime.config.lock import read_lock
from ratc_runtime.errors import RuntimeFinding, visible

from tests.places import ROOT
from tests.security.fuzz import LIMIT_S

LOCK = ROOT / "tests" / "cases" / "product-document-cpu" / "expected" / "lock.yaml"
NAME = "\x1b[31m\n::error::x ##[error]y"
HOSTILE: dict[str, dict[str, Any]] = {
    "deep": {"lock": "[" * 100_000},
    "digits": {"lock": "9" * 10_000},
    "no mapping": {"lock": "null"},
    "empty": {"lock": "{}"},
    "no text": {"lock": 5},
    "version": {"version": NAME},
    "fingerprint": {"fingerprint": 5},
    "progress": {"progress": NAME},
    "no progress": {"progress": {}},
    "epoch": {"progress": {"epoch": NAME, "step": 0}},
    "no weights": {"model": None},
    "list of weights": {"model": [1]},
    "numbers": {"model": {"a": 5}},
    "sparse": {"model": {"a": torch.zeros(2).to_sparse()}},
    "number for a name": {"model": {5: torch.zeros(2)}},
}


def made(path: Path, **values: Any) -> Path:
    lock = json.dumps(yaml.safe_load(LOCK.read_text()), default=str)
    content = {"version": header.VERSION, "fingerprint": "", "lock": lock, "world_size": 1, "model": {}, "rng": []}
    files.write_file(path, {**content, "progress": {"epoch": 1, "step": 0}, **values})
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_of_another_format_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("bad.pt"), **HOSTILE[name])
    commands: list[tuple[Any, list[str]]] = [(export, ["bad.pt", "-o", "out.safetensors"])]
    if "weights" not in name and "model" not in HOSTILE[name]:  # those are read after the model was built
        commands += [(predict, ["bad.pt", ".", "-o", "masks"]), (evaluate, ["bad.pt"])]
        commands += [(export, ["bad.pt", "-o", "out.onnx"])]
    for command, words in commands:
        if name == "empty" and words[-1] == "out.safetensors":
            continue  # weights alone do not ask for more of the lock
        assert command.main(words) == 1
        said = capsys.readouterr().err
        assert "error[R508]" in said
        assert not any(line.lstrip().startswith("::") or "##[" in line or "\x1b" in line for line in said.splitlines())


ABSURD: dict[str, tuple[str, Any, str]] = {
    "loader processes": ("data.num_workers", 1_000_000, "R508"),
    "less than none": ("data.num_workers", -1, "R508"),
    "batches ahead": ("data.prefetch_factor", -3, "R508"),
    "pixels of a side": ("data.image_size", [2_000_000, 1], "R508"),
    "pixels": ("data.image_size", [40_000, 40_000], "R511"),
    "levels": ("data.scales", [1.0] * 100_000, "R508"),
    "a factor": ("data.scales", [1e308], "R508"),
    "channels": ("data.channels", 10**6, "R508"),
    "classes": ("data.num_classes", 10**9, "R508"),
    "blocks": ("model.args.num_blocks", 10**7, "R509"),
    "width": ("model.args.feature_dims", 10**9, "R509"),
    "width that is built": ("model.args.feature_dims", 65_536, "R509"),
    "no width": ("model.args.feature_dims", -1, "R509"),
    "a seed": ("seed", -(2**62), "R508"),
    "no stride": ("model.args.stride", 0, "R509"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_numbers_of_a_checkpoint_s_lock_are_refused_early(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    where, value, code = ABSURD[name]
    lock = yaml.safe_load(LOCK.read_text())
    *parents, key = where.split(".")
    inner = lock
    for parent in parents:
        inner = inner[parent]
    assert key in inner
    inner[key] = value
    made(Path("bad.pt"), lock=json.dumps(lock, default=str))
    for command, words in (
        (predict, ["bad.pt", ".", "-o", "masks"]),
        (evaluate, ["bad.pt"]),
        (export, ["bad.pt", "-o", "out.onnx"]),
    ):
        begun = time.monotonic()
        assert command.main(words) == 1
        assert f"error[{code}]" in capsys.readouterr().err
        assert time.monotonic() - begun < LIMIT_S


def test_errors_of_the_model_at_the_lock_s_image_size_are_reported(tmp_path: Path) -> None:
    lock = read_lock(LOCK)
    for error, code in (
        (RuntimeError("Kernel size can't be greater than actual input size"), "R509"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "R511"),
        (MemoryError(), "R511"),
    ):

        class Model(torch.nn.Module):
            def forward(self, _image: Any, error: Exception = error) -> Any:
                raise error

        with pytest.raises(RuntimeFinding) as caught:
            inference.Predictor(lock, Model(), torch.device("cpu")).predict(torch.zeros(1))
        assert caught.value.code == code


def test_loader_processes_are_limited_to_the_number_of_cores() -> None:
    lock = read_lock(LOCK)
    many = lock.replace(data=lock.data.replace(num_workers=1024, prefetch_factor=10**9))
    alone = inference._for_one_process(many, torch.device("cpu"), None)
    assert 1 <= alone.data.num_workers <= (os.cpu_count() or 1)
    assert alone.data.prefetch_factor == 2


def test_r520_for_shards_whose_lock_lacks_the_zero_stage(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFinding) as caught:
        weights._consolidated(tmp_path, {"lock": "{}"}, False)
    assert caught.value.code == "R520"


def test_r508_for_a_pipe_instead_of_a_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "some.pt")
    os.mkfifo(tmp_path / "some.safetensors")
    with pytest.raises(RuntimeFinding) as caught:
        header.read(tmp_path / "some.pt")
    assert caught.value.code == "R508"
    with pytest.raises(RuntimeFinding) as caught:
        weights.load_weights(tmp_path / "some.safetensors")
    assert caught.value.code == "R508"


def test_r509_for_weights_of_another_model(tmp_path: Path) -> None:
    path = made(tmp_path / "other.pt", model={NAME: torch.zeros(2)})
    with pytest.raises(RuntimeFinding) as caught:
        weights.load_into(torch.nn.Linear(1, 1), "rat", path)
    assert caught.value.code == "R509"


@pytest.mark.parametrize(
    "text", ["::error::x", "a\n::error::x", "a\n  ::error::x", "##[error]x", "a ##vso[task]x", "\x1b]0;x\x07", "\u202e"]
)
def test_runtime_messages_contain_no_terminal_or_workflow_commands(text: str) -> None:
    for said in (visible(text), RuntimeFinding("R506", text, text, text).render()):
        for line in said.splitlines():
            assert not line.lstrip().startswith("::")
            assert "##[" not in line
            assert "##vso[" not in line
            assert line.isprintable()
