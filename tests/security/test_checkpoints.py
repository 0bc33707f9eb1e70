"""Checkpoints of strangers, whole by their digest and hostile in what they hold."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ratc_runtime.checkpoint import files, header, weights
from ratc_runtime.commands import evaluate, export, predict
from ratc_runtime.errors import RuntimeFinding, visible

from tests.places import ROOT

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
def test_a_checkpoint_of_another_form_is_named(
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


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "some.pt")
    os.mkfifo(tmp_path / "some.safetensors")
    with pytest.raises(RuntimeFinding) as caught:
        header.read(tmp_path / "some.pt")
    assert caught.value.code == "R508"
    with pytest.raises(RuntimeFinding) as caught:
        weights.load_weights(tmp_path / "some.safetensors")
    assert caught.value.code == "R508"


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    path = made(tmp_path / "other.pt", model={NAME: torch.zeros(2)})
    with pytest.raises(RuntimeFinding) as caught:
        weights.load_into(torch.nn.Linear(1, 1), "rat", path)
    assert caught.value.code == "R509"


@pytest.mark.parametrize(
    "text", ["::error::x", "a\n::error::x", "a\n  ::error::x", "##[error]x", "a ##vso[task]x", "\x1b]0;x\x07", "\u202e"]
)
def test_what_the_runtime_says_commands_nothing(text: str) -> None:
    for said in (visible(text), RuntimeFinding("R506", text, text, text).render()):
        for line in said.splitlines():
            assert not line.lstrip().startswith("::")
            assert "##[" not in line
            assert "##vso[" not in line
            assert line.isprintable()
