"""Measured and scaled learning rates in compiled plans."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ratc import compiler, facts, rates
from ratc.cli import main
from ratc.compiler import File, Inputs

SPEC = """\
experiment_name: demo
data: {{data_dir: data}}
model: {{num_blocks: 2}}
training: {{batch_size: 2, target_batch_size: {size}, {more}}}
resources: {{num_gpus: 0, cpus: 2}}
"""
MACHINE = facts.Machine(gpus=0, card=None, cpus=2, memory_bytes=None, source="this machine")


def write(folder: Path, more: str, size: int = 8, measured: object = None, **changes: object) -> Path:
    """A spec, and beside it what was measured with a global batch of 8."""
    path = folder / "spec.yaml"
    path.write_text(SPEC.format(size=size, more=more))
    settings, found = compiler.analyse(Inputs(File("spec.yaml", path.read_bytes())))
    assert settings is not None, found
    content = {
        "learning_rate": 0.01,
        "global_batch_size": 8,
        "of": rates.conditions(settings),
        "reason": "there",
        "steps": 40,
        "device": "cpu",
        "precision": "fp32",
        "date": "2026-11-25",
        **changes,
    }
    (folder / "measured_spec.yaml").write_text(rates.text(content))
    return path


def lock(folder: Path) -> tuple[dict, str]:
    text = (folder / "compiled/demo/local/lock.yaml").read_text()
    return yaml.safe_load(text), next(line for line in text.splitlines() if line.startswith("  learning_rate:"))


def test_auto_uses_the_measured_learning_rate_with_its_source(tmp_path, capsys):
    path = write(tmp_path, "learning_rate: auto")
    assert main(["compile", str(path)]) == 0
    content, line = lock(tmp_path)
    assert content["training"]["learning_rate"] == 0.01
    assert line.endswith("# measured on 2026-11-25 over 40 steps of 8 samples")
    assert set(content["inputs"]) == {"spec.yaml", "measured_spec.yaml"}
    assert main(["check", str(tmp_path)]) == 0
    capsys.readouterr()
    # It belongs to the inputs: another one makes what was compiled differ.
    write(tmp_path, "learning_rate: auto", learning_rate=0.02)
    assert main(["check", str(tmp_path)]) == 1
    assert main(["explain", str(path), "training.learning_rate"]) == 0
    assert "measured_spec.yaml:2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [("linear", 32, 0.04), ("linear", 4, 0.005), ("sqrt", 32, 0.02), ("sqrt", 16, 0.0141421), ("sqrt", 8, 0.01)],
)
def test_measured_rate_is_scaled_from_its_own_batch_size(tmp_path, capsys, rule, size, expected):
    path = write(tmp_path, f"learning_rate: auto, learning_rate_scaling: {rule}", size)
    assert main(["compile", str(path)]) == 0
    assert "R345" not in capsys.readouterr().err
    content, line = lock(tmp_path)
    assert content["training"]["learning_rate"] == expected
    assert ("scaled from a global batch of 8; measured on" in line) == (size != 8)


@given(rate=st.floats(1e-6, 1.0), base=st.integers(1, 512), factor=st.sampled_from([1, 2, 4, 8]))
def test_scaling_rules_match_their_formulas(rate, base, factor):
    size = base * factor
    for rule, expected in (("linear", rate * factor), ("sqrt", rate * math.sqrt(factor)), ("none", rate)):
        more = f"learning_rate: {rate!r}, learning_rate_scaling: {rule}, base_batch_size: {base}"
        text = SPEC.format(size=size, more=more).replace("batch_size: 2, ", "batch_size: 1, ", 1)
        settings, found = compiler.analyse(Inputs(File("spec.yaml", text.encode())))
        assert settings is not None, found
        plan, found = compiler.plan(settings, None, MACHINE)
        assert plan is not None, found
        assert plan.values["training.learning_rate"].value == pytest.approx(expected, rel=1e-5)


def test_another_batch_size_without_a_scaling_rule_is_a_warning(tmp_path, capsys):
    path = write(tmp_path, "learning_rate: auto", size=32)
    assert main(["compile", str(path)]) == 0
    assert "warning[R345]: the learning rate was measured with a global batch of 8, but the global batch is 32" in (
        capsys.readouterr().err
    )
    assert lock(tmp_path)[0]["training"]["learning_rate"] == 0.01


def test_unusable_or_missing_measured_rate_is_refused(tmp_path, capsys):
    path = write(tmp_path, "learning_rate: auto")
    assert main(["compile", str(path), "--set", "model.num_blocks=1"]) == 1
    assert "error[R344]: the learning rate beside the spec was measured for another training" in capsys.readouterr().err
    # How data are read, and how long is trained, changes no learning rate.
    assert main(["compile", str(path), "--set", "data.num_workers=0", "--epochs", "3", "--data-dir", "/else"]) == 0
    (tmp_path / "measured_spec.yaml").write_text("learning_rate: -1\n")
    capsys.readouterr()
    assert main(["compile", str(path)]) == 1
    assert "measured_spec.yaml:1" in capsys.readouterr().err
    (tmp_path / "measured_spec.yaml").unlink()
    assert main(["compile", str(path)]) == 1
    assert "run `ratc tune lr SPEC`, which measures it" in capsys.readouterr().err
    path.write_text(SPEC.format(size=8, more="learning_rate: automatic"))
    assert main(["validate", str(path)]) == 1
    path.write_text(SPEC.format(size=8, more="learning_rate: 1e-3, learning_rate_scaling: sqrt"))
    assert main(["compile", str(path)]) == 1
    assert "error[R346]" in capsys.readouterr().err


def test_learning_rate_option_accepts_numbers_and_auto(tmp_path):
    path = write(tmp_path, "learning_rate: 1e-3")
    for given_as, expected in (("1e-2", 0.01), ("0.5", 0.5), ("auto", 0.01)):
        assert main(["compile", str(path), "--learning-rate", given_as]) == 0
        assert lock(tmp_path)[0]["training"]["learning_rate"] == expected
    assert main(["compile", str(path), "--memory", "512GB"]) == 0


def test_sweep_points_may_use_the_measured_rate(tmp_path, capsys):
    path = write(tmp_path, "learning_rate: 1e-3")
    with path.open("a") as file:
        file.write("sweep: {grid: {learning_rate: [auto, 1e-4]}}\n")
    assert main(["compile", str(path), "--target", "slurm", "-o", str(tmp_path / "out"), "--walltime", "1:00"]) == 0
    points = sorted((tmp_path / "out/points").glob("*/lock.yaml"))
    assert [yaml.safe_load(point.read_text())["training"]["learning_rate"] for point in points] == [0.01, 1e-4]
