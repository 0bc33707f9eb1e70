"""Initial weights of a run: supported files, selection of names, and refusals."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.checkpoint.first_weights import begin_with
from ratc_runtime.checkpoint.weights import load_weights
from ratc_runtime.config.sections import InitFrom
from ratc_runtime.errors import RuntimeFinding
from safetensors.torch import save_file
from torch import nn

from tests.helpers.lockfile import BASE, results, run_training, write_data, write_lock


def model(classes: int = 1) -> nn.Module:
    torch.manual_seed(classes)
    parts = {"body": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4), "head": nn.Linear(4, classes)}
    return nn.Sequential(OrderedDict(parts))


def asked(path: Path, **changes: Any) -> InitFrom:
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "sha256:" + "0" * 64
    return InitFrom(**{"path": str(path), "digest": digest, "strict": True, "load": ["*"], "skip": [], **changes})


def saved(folder: Path, content: Any) -> Path:
    path = folder / "weights.pt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("form", ["alone", "model", "state_dict", "safetensors"])
def test_every_supported_weight_file_is_read(tmp_path: Path, form: str) -> None:
    given, path = model(2).state_dict(), tmp_path / "weights.safetensors"
    if form == "safetensors":
        save_file(given, path)
    else:
        path = saved(tmp_path, given if form == "alone" else {form: given, "epoch": 3})
    net = model(2)
    torch.nn.init.zeros_(net.head.weight)
    assert begin_with(net, asked(path), path) == f"begins with 9 of 9 tensors of {path}"
    assert all(torch.equal(value, given[name]) for name, value in net.state_dict().items())


def test_r595_for_weights_with_nan_and_not_for_an_infinite_mask(tmp_path: Path) -> None:
    given, net = model(1).state_dict(), model(1)
    given["norm.running_mean"][0] = float("-inf")
    path = saved(tmp_path, given)
    assert begin_with(net, asked(path), path).startswith("begins with 9 of 9")
    given["head.weight"][0, 1] = float("nan")
    path = saved(tmp_path, given)
    with pytest.raises(RuntimeFinding, match=r"1 of its tensors hold NaN: head\.weight") as found:
        begin_with(net, asked(path), path)
    assert found.value.code == "R595"


@pytest.mark.parametrize(
    ("protocol", "content", "said"),
    [(2, slice(1), "would run code"), (4, {"a": torch.ones(1)}, "another protocol than 2")],
)
def test_a_refused_pickle_is_not_said_to_hold_code_for_its_protocol(
    tmp_path: Path, protocol: int, content: Any, said: str
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path, pickle_protocol=protocol)
    with pytest.raises(RuntimeFinding, match=said) as found:
        load_weights(path, plain=True)
    assert found.value.code == "R508"


def test_skip_patterns_leave_matching_weights_unchanged(tmp_path: Path) -> None:
    given, net = model(5).state_dict(), model(1)
    head = net.head.weight.detach().clone()
    path = saved(tmp_path, given)
    line = begin_with(net, asked(path, skip=["head.*"]), path)
    assert line.endswith("7 of 9 tensors of " + str(path) + "; not loaded: head.weight, head.bias")
    assert torch.equal(net.body.weight, given["body.weight"])
    assert torch.equal(net.head.weight, head)
    before = net.norm.weight.detach().clone()
    begin_with(net, asked(path, load=["body.*"]), path)
    assert torch.equal(net.norm.weight, before)


def test_without_strict_unmatched_names_are_listed(tmp_path: Path) -> None:
    given = model().state_dict()
    given["old.weight"] = given.pop("body.weight")
    path = saved(tmp_path, given)
    line = begin_with(model(), asked(path, strict=False), path)
    assert line.endswith("; not loaded: body.weight; not in the model: old.weight")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"head.weight: \(5, 4\) float32 in the file, \(1, 4\) float32 in the model"),
        ({"strict": False}, r'leave them out: `skip: \["head.weight", "head.bias"\]`'),
        ({"load": ["body"]}, "matches 'body'"),
        ({"skip": ["tail.*"]}, r"matches 'tail.\*'"),
        ({"skip": ["*"]}, "`load` and `skip` leave no name to load"),
        ({"load": ["body.*"], "skip": ["body.*"]}, "`load` and `skip` leave no name to load"),
    ],
)
def test_r595_for_weights_that_do_not_fit_the_model(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = saved(tmp_path, model(5).state_dict())
    with pytest.raises(RuntimeFinding, match=words) as raised:
        begin_with(model(1), asked(path, **changes), path)
    assert raised.value.code == "R595"


def test_strict_refuses_unmatched_names(tmp_path: Path) -> None:
    given = {f"module.{name}": value for name, value in model().state_dict().items()} | {"body.bias": torch.zeros(4)}
    path = saved(tmp_path, given)
    with pytest.raises(RuntimeFinding, match=r"only the file has module\.body\.weight") as raised:
        begin_with(model(), asked(path), path)
    assert raised.value.code == "R595"


def test_a_file_that_runs_code_is_not_loaded(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = saved(tmp_path, {"state_dict": Runs()})
    with pytest.raises(RuntimeFinding, match="cannot be read") as raised:
        begin_with(model(), asked(path), path)
    assert raised.value.code == "R508"
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, in `first`, and its data in `data`."""
    folder = tmp_path_factory.mktemp("trained")
    write_data(folder / "data", train=4)
    done = run_training(write_lock(folder / "compiled", training__epochs=1), "--output-dir", "first")
    assert done.returncode == 0, done.stderr
    return folder


def second(folder: Path, source: str, **changes: Any) -> Path:
    """The lock of a run that starts from the first one's best weights, and learns at a rate of next to nothing."""
    file = folder / source
    digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    start = {"path": source, "digest": digest, "strict": True, "load": ["*"], "skip": []}
    training = {**BASE["training"], "learning_rate": 1e-30, "weight_decay": 0.0, "init_from": start, **changes}
    return write_lock(folder / "second", training=training)


def test_a_run_starts_from_another_runs_weights(trained: Path) -> None:
    source = "first/checkpoints/best.pt"
    shutil.copy(trained / source, trained / "copy.pt")
    lock = second(trained, "copy.pt", epochs=1)
    done = run_training(lock, "--output-dir", "again")
    assert done.returncode == 0, done.stderr
    assert "tensors of copy.pt" in done.stdout
    before, after = load_weights(trained / source), load_weights(trained / "again/checkpoints/last.pt")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert results(trained / "again")["status"] == "finished"
    (trained / "copy.pt").unlink()
    # What is continued does not need the file; what begins again does.
    more = second(trained, source, epochs=1)
    more.write_text(more.read_text().replace(f"path: {source}", "path: copy.pt"))
    (trained / "again/results.json").unlink()
    done = run_training(more, "--output-dir", "again")
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 1" in done.stdout
    done = run_training(more, "--output-dir", "again", "--fresh")
    assert "error[R596]: the weights that the run starts from cannot be read" in done.stderr
    (trained / "copy.pt").write_bytes(b"others")
    done = run_training(more, "--output-dir", "third")
    assert "error[R596]: the weights that the run starts from have changed since the spec was compiled" in done.stderr
