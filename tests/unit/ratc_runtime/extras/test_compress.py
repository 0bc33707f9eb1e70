"""`ratc_runtime compress`: its files load again, and a score beyond the tolerance gives exit status 1."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ratc_runtime import inference
from ratc_runtime.commands import evaluate
from ratc_runtime.extras import compress
from torch import nn

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment, run_forked, run_training, write_data, write_lock
from tests.places import ROOT


def test_pruning_zeroes_the_smallest_weights_and_keeps_parameter_names() -> None:
    layer = nn.Linear(4, 2)
    weight = torch.tensor([[1.0, -2, 3, -4], [5, -6, 7, -8]])
    layer.weight.data.copy_(weight)
    compress.prune_weights(nn.Sequential(layer), 0.5)
    assert torch.equal(layer.weight, torch.where(weight.abs() > 4, weight, 0.0))
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_the_loss_of_score_follows_the_direction_of_the_metric() -> None:
    assert compress.loss_of_score(0.9, 0.8, True) == pytest.approx(0.1)
    assert compress.loss_of_score(3.0, 5.0, False) == 2
    assert compress.loss_of_score(0.9, math.nan, True) == math.inf


@pytest.mark.slow
def test_a_compressed_run_loads_again_and_is_held_to_the_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    write_data(tmp_path / "data", test=2)
    done = run_training(write_lock(tmp_path / "compiled"))
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    command = ["out", "-o", "small", "--sparsity", "0.5", "--tolerance", "2"]
    for mode in compress.MODES:
        assert compress.main([*command, "--quantize", mode, "--force"]) == 0, capsys.readouterr().err
        report = json.loads(Path("small/report.json").read_text())
        assert report["after"]["bytes"] < report["before"]["bytes"]
        assert min(report["after"]["sparsity"].values()) >= 0.4
        again = compress.load_compressed(Path("small/model.pt"))
        assert compress.sparsity_of(again) == report["after"]["sparsity"]
        # What was loaded gives what was measured.
        plain = inference.open_checkpoint(Path("out"), device="cpu")
        engine = inference.Predictor(plain.lock, again, torch.device("cpu"))
        found, _ = evaluate.score(dataclasses.replace(plain, engine=engine), "val", Path("data"))
        assert {**found.scores, "loss": found.loss} == pytest.approx(report["after"]["scores"], nan_ok=True)
        assert report["after"]["scores"]["loss"] != report["before"]["scores"]["loss"]
    assert sorted(path.name for path in Path("small").iterdir()) == ["model.pt", "report.json"]
    assert compress.main(command) == 1
    assert "error[R546]" in capsys.readouterr().err
    assert compress.main(["out", "-o", "other", "--metric", "accuracy"]) == 1
    assert "error[R547]" in capsys.readouterr().err
    assert compress.main(["out", "-o", "strict", "--tolerance", "-1"]) == 1
    assert "error[R548]" in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_is_pruned_in_training_quantized_and_exported(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "brain_compressed"
    folder.mkdir()
    shutil.copy(ROOT / "specs/brain_compressed/config.yaml", folder)
    environ = {**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}

    def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
        return run_forked(module, folder, *words)

    assert run("ratc_runtime.data.sample", "--", "brain", str(tmp_path / "brain/data")).returncode == 0
    shorter = ("--epochs", "6", "--set", "compression.begin_epoch=2", "--set", "compression.end_epoch=4")
    command = [sys.executable, "-m", "ratc", "train", "config.yaml", *shorter]
    trained = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=HANGS_S)
    assert trained.returncode == 0, trained.stderr
    output = folder / "outputs/brain_compressed"
    assert json.loads((output / "results.json").read_text())["best_epoch"] in (5, 6)
    # Nothing is said on the command line: the lock knows how small, by what score and within what tolerance.
    done = run("ratc_runtime.extras.compress", str(output), "-o", "small")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "small/report.json").read_text())
    assert (report["metric"], report["tolerance"], report["quantization"]) == ("dice", 0.01, "weight_only")
    assert report["before"]["scores"]["dice"] > 0.5, "six epochs find some of the white matter"
    assert report["worse_by"] <= 0.01
    assert report["after"]["bytes"] < 0.9 * report["before"]["bytes"]
    for layers in (report["before"]["sparsity"], report["after"]["sparsity"]):
        assert all(share == pytest.approx(0.5, abs=0.02) for share in layers.values())
    exported = run("ratc_runtime.commands.export", str(output / "checkpoints/best.pt"), "-o", "model.onnx")
    assert exported.returncode == 0, exported.stderr
    assert "run by ONNX Runtime" in exported.stdout
