"""`ratc profile`: measuring, as far as it works without a GPU, and compiling with the measurement."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ratc import compiler, facts
from ratc.cli import main
from ratc.compiler import File
from ratc.fitting import from_measurement
from ratc.memory import measured
from ratc.memory.request import variant
from ratc.workflow import edit_facts
from tests.effort import HANGS_S
from tests.helpers.measurements import GIB, MACHINE, measurement, read
from tests.places import ROOT

# Measuring, and compiling with what was measured.

#: Cannot be traced: its control flow depends on values.
NET = """\
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)

    def forward(self, image):
        out = self.layer(image)
        return out if out.sum() > 0 else -out
"""
SPEC = """\
experiment_name: own
model: {name: "net:Net"}
data: {data_dir: data, image_size: 32}
training: {target_batch_size: 64, deepspeed: false}
resources: {gpu: h100, num_gpus: 1, cpus: 8}
"""
#: In the place of the interpreter: the step is real, the card's counters are not. `limit` is what fits.
SHIM = """\
import sys, time
import torch
from ratc_runtime.commands import gpu_memory as gpu, measure_step as profile

LIMIT, GIB = {limit}, 2**30


class Counters:
    def __init__(self, size): self.size = size
    def forget(self, device): pass
    def clock(self, device): return time.perf_counter()
    def peaks(self, device):
        return gpu.Peaks(2 * self.size * GIB, (1 + 2 * self.size) * GIB, (2 + 2 * self.size) * GIB, GIB, 79 * GIB)
    def name(self, device): return "NVIDIA H100 80GB HBM3"
    def capability(self, device): return "9.0"
    def driver(self): return "580.65.06"


def measure(lock):
    size = lock.training.micro_batch_size
    if size > LIMIT:
        return dict(micro_batch=size, fits=False, error="CUDA out of memory. Tried to allocate 2 GiB"), None
    lock = lock.replace(hardware=lock.hardware.replace(device="cpu"))
    return profile.run(lock, torch.device("cpu"), Counters(size)), None


profile.measure = measure
sys.exit(profile.main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RATC_PYTHON", raising=False)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


def fake_gpu(folder, monkeypatch, limit, machine=MACHINE):
    """This machine gets a card: NVML's answer and the card's counters, nothing else."""
    monkeypatch.setattr("ratc.probe.local.machine", lambda environment: machine)
    (folder / "shim.py").write_text(SHIM.format(limit=limit))
    interpreter = folder / "python"
    interpreter.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" "{folder}/shim.py" "$@"\n')
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("RATC_PYTHON", str(interpreter))


def write_measurement():
    """A facts file with a measurement of the very step of spec.yaml, as if it had been made elsewhere."""
    settings, found = compiler.analyse(compiler.Inputs(File("spec.yaml", Path("spec.yaml").read_bytes())))
    assert settings is not None, found
    plan, found = compiler.plan(settings, None, None)
    assert plan is not None, found
    conditions = from_measurement.conditions(plan, variant(plan, "9.0"), ".")
    points = ((2, 5), (4, 9))
    assert edit_facts.add("facts.yaml", measurement(points, conditions=conditions), MACHINE) is None


def micro_batch(*options):
    """Compile with the facts; the micro-batch, the lock's text."""
    os.environ.pop("RATC_PYTHON", None)  # the stand-in can do nothing but measure
    assert main(["compile", "spec.yaml", "--facts", "facts.yaml", "-o", "out", *options]) == 0
    text = Path("out/lock.yaml").read_text()
    return yaml.safe_load(text)["training"]["micro_batch_size"], text


@pytest.mark.slow
def test_untraceable_model_is_measured_and_compiled(folder, monkeypatch, capsys):
    fake_gpu(folder, monkeypatch, limit=100)
    assert main(["profile", "spec.yaml", "--measure", "-o", "facts.yaml"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +2 +4\.00 +5\.00 +6\.00 +\d+\.\d$", out, re.MULTILINE), out
    found = measured.read(read(folder / "facts.yaml")["measured"].value[0])
    assert [point.micro_batch for point in found.points] == [2, 4]
    assert found.conditions.precision == "bf16"
    assert found.gradient_bytes == 16  # (3 + 1) x 4 bytes
    assert all(point.samples_per_second > 0 for point in found.points)
    # 1 + 2 GiB a sample: 32 take 65, 64 would take 129.
    size, text = micro_batch()
    assert size == 32
    assert re.search(
        r"micro_batch_size: 32  # largest divisor of 64 / 1 = 64 that fits h100: 6\d\.\d GiB of \d+\.\d GiB measured on"
        rf" {found.date} with torch \S+, 64 would take",
        text,
    ), text
    assert re.search(rf"peak_reserved_bytes: {65 * GIB}  # measured on {found.date} with torch", text)
    said = capsys.readouterr().err
    assert "tracing" not in said
    assert "warning" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "sizes"), [(3, [1, 2]), (1, [1]), (0, None)])
def test_smaller_sizes_are_measured_if_memory_runs_out(folder, monkeypatch, capsys, limit, sizes):
    fake_gpu(folder, monkeypatch, limit)
    status = main(["profile", "spec.yaml", "--measure", "-o", "facts.yaml"])
    said = capsys.readouterr().err
    if sizes is None:
        assert status == 1
        assert "error[R511]: a training step with one sample runs out of memory on this card" in said
        assert not Path("facts.yaml").exists()
        return
    assert status == 0, said
    entry = read(folder / "facts.yaml")["measured"].value[0]
    assert [point["micro_batch"] for point in entry["points"]] == sizes
    assert micro_batch()[0] == (1 if limit == 1 else 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("data.image_size=48", "image size 32 x 32, the step has 48 x 48"),
        ("training.precision=fp32", "precision bf16, the step has fp32"),
        ("training.loss=dice", "it is of another model, code, loss or optimizer, or of other channels or classes"),
    ],
)
def test_measurement_of_another_step_is_ignored_with_a_warning(folder, capsys, option, reason):
    write_measurement()
    size, _ = micro_batch("--set", option)
    said = capsys.readouterr().err
    assert size == 8  # neither measured nor traceable
    assert "warning[R516]: the measurement of the facts file is not of this step; it is not used" in said
    assert f"of net:Net: {reason}" in said
    assert "--measure" in said


@pytest.mark.slow
def test_measurement_is_ignored_after_a_change_of_the_model_code(folder, capsys):
    write_measurement()
    assert micro_batch()[0] == 32
    assert capsys.readouterr().err.count("warning") == 0
    (folder / "net.py").write_text(NET + "\n# wider\n")
    micro_batch()
    assert "another model, code, loss" in capsys.readouterr().err
    # A batch size of the spec's is taken as it is: nothing is held against the measurement.
    assert micro_batch("--batch-size", "4")[0] == 4
    assert "R516" not in capsys.readouterr().err


@pytest.mark.slow
def test_rat_is_measured_with_the_attention_that_compile_tries_first(folder, monkeypatch, capsys):
    spec = SPEC.replace('{name: "net:Net"}', "{feature_dims: 16, num_blocks: 1, num_heads: 2, iters: 1}")
    (folder / "spec.yaml").write_text(spec)
    fake_gpu(folder, monkeypatch, limit=100)
    assert main(["profile", "spec.yaml", "--measure", "-o", "facts.yaml"]) == 0
    size, text = micro_batch()
    assert size == 32
    assert "attention_memory: full" in text
    capsys.readouterr()
    assert main(["profile", "spec.yaml", "--facts", "facts.yaml"]) == 0
    out = capsys.readouterr().out
    assert "micro-batch 32 x 2 accumulation steps x 1 GPU; measured on" in out
    assert "65.0 GiB  reserved" in out


# Without a GPU: real processes.


def command(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}",
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
        },
    )


def test_measuring_without_a_gpu_is_an_error(folder):
    done = command("ratc", "profile", "spec.yaml", "--measure", "-o", "facts.yaml")
    assert done.returncode == 1
    assert "error[R515]: there is no GPU here to measure on" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("facts.yaml").exists()


def test_runtime_reports_that_there_is_no_gpu(folder, monkeypatch, capsys):
    monkeypatch.setattr("ratc.probe.local.machine", lambda environment: MACHINE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["profile", "spec.yaml", "--measure"]) == 1
    assert re.search(r"error\[R515\]: there is no GPU to measure on: torch \S+ sees no CUDA", capsys.readouterr().err)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"micro_batch": 0}', '{"micro_batch": true}', '{"micro_batch": 2}'])
def test_malformed_measuring_request_is_refused(tmp_path, text):
    done = subprocess.run(
        [sys.executable, "-m", "ratc_runtime.commands.measure_step", str(tmp_path / "out.json")],
        input=text,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "runtime")},
    )
    assert done.returncode == 2, done.stderr
    assert "the request cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("machine", "options", "said"),
    [
        (replace(MACHINE, card=facts.find_card("t4")), [], "this machine has NVIDIA T4, the step is planned for h100"),
        (MACHINE, ["--set", "training.deepspeed=true", "--num-gpus", "4"], "a step with DeepSpeed on one GPU"),
    ],
)
def test_another_card_or_deepspeed_cannot_be_measured(folder, monkeypatch, capsys, machine, options, said):
    monkeypatch.setattr("ratc.probe.local.machine", lambda environment: machine)
    assert main(["profile", "spec.yaml", "--measure", *options]) == 1
    assert f"error[R515]: {said}" in capsys.readouterr().err


def test_measuring_options_without_measure_are_refused(folder, capsys):
    assert main(["profile", "spec.yaml", "-o", "facts.yaml"]) == 2
    assert "add --measure" in capsys.readouterr().err
    assert main(["profile", "spec.yaml", "--measure", "--sizes", "4,2"]) == 2
    assert "`4,2` is not a pair of sizes" in capsys.readouterr().err


@pytest.mark.slow
def test_profile_without_measure_shows_the_prediction(folder, capsys):
    traceable = NET.replace("return out if out.sum() > 0 else -out", "return out")
    (folder / "net.py").write_text(traceable)
    assert main(["profile", "spec.yaml", "--batch-size", "16"]) == 0
    said = capsys.readouterr()
    assert "h100, bf16, micro-batch 16 x 4 accumulation steps x 1 GPU; predicted:" in said.out
    assert "`--measure` runs the step on this machine and needs its GPU" in said.err
    assert len(re.findall(r"[GM]iB", said.out)) == 5
