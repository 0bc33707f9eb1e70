"""The learning-rate range test: its measurement, its suggestion, and the command."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from ratc_runtime.config.lock import lock_from
from ratc_runtime.data.joint import open_data_set
from ratc_runtime.data.loading import train_loader
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.extras.range_test import DIVERGED, Point, alone, measure, rates, suggest
from ratc_runtime.models.build import build_model
from ratc_runtime.tasks import make_task
from ratc_runtime.training.open_run import seed_everything

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment, lock_content, write_data

SPEC = """\
experiment_name: tiny
model: {feature_dims: 16, num_blocks: 1, num_heads: 2, iters: 1, sga_kernel_size: 5, stride: 4}
training: {batch_size: 2, target_batch_size: 4, epochs: 1}
data: {data_dir: data, image_size: 32, channels: 1}
logging: {use_mlflow: false, backend: none}
resources: {num_gpus: 0, cpus: 2}
"""


def curve(mean: object, count: int = 61) -> list[Point]:
    """Points whose mean loss is a function of the rate's power of ten."""
    assert callable(mean)
    return [Point(rate, mean(math.log10(rate)), mean(math.log10(rate))) for rate in rates(1e-6, 1.0, count)]


def test_the_suggestion_is_the_rate_at_which_the_loss_falls_fastest() -> None:
    # A logistic fall is steepest in its middle.
    rate, reason = suggest(curve(lambda power: 1 / (1 + math.exp(4 * (power + 3)))))
    assert rate == pytest.approx(1e-3, rel=0.3)
    assert "falls fastest there" in reason
    diverging = [*curve(lambda power: 1 / (1 + math.exp(4 * (power + 3))) + 0.1), Point(2.0, 9.0, 9.0)]
    rate, reason = suggest(diverging)
    assert rate == pytest.approx(1e-3, rel=0.3)
    assert f"{DIVERGED:g} times that at 2.0e+00" in reason


def test_the_suggestion_is_ten_times_below_the_rate_where_loss_rises() -> None:
    """A loss that falls ever faster until it jumps is steepest just before."""
    points = [point for point in curve(lambda power: 4 - math.exp(power)) if point.rate < 0.5]
    points += [Point(0.6, 30.0, 7.0), Point(0.8, 90.0, 15.0)]
    rate, reason = suggest(points)
    assert rate == pytest.approx(0.1 * points[-3].rate, rel=0.05)
    assert reason.startswith("a tenth of the rate at which the mean loss is least; it falls fastest at ")


@pytest.mark.parametrize("points", [curve(lambda power: 1.0), curve(lambda power: 2.0 + power), []])
def test_r549_if_the_loss_does_not_fall(points: list[Point]) -> None:
    if points and points[0].mean < points[-1].mean:
        points = [point._replace(mean=point.mean + 6) for point in points]
    with pytest.raises(RuntimeFinding) as raised:
        suggest(points)
    assert raised.value.code == "R549"


def test_one_process_replaces_several_with_the_same_global_batch() -> None:
    lock = lock_from(lock_content())
    training = lock.training.replace(global_batch_size=8, gradient_accumulation_steps=2)
    several = lock.replace(
        training=training,
        parallel=lock.parallel.replace(world_size=2, processes_per_node=2),
        engine=lock.engine.replace(use_accelerate=True),
    )
    one = alone(several)
    assert (one.parallel.world_size, one.training.gradient_accumulation_steps) == (1, 4)
    assert one.training.global_batch_size == 8
    assert not one.engine.use_accelerate


def test_the_first_step_equals_the_run_s_and_the_test_is_reproducible(tmp_path: Path) -> None:
    write_data(tmp_path, train=10)
    lock = lock_from(lock_content(model__args={**lock_content()["model"]["args"], "mlp_dropout": 0.0}))
    points = list(measure(lock, tmp_path, 1e-6, 0.1, 12))
    assert [point.rate for point in points] == rates(1e-6, 0.1, 12)
    assert points == list(measure(lock, tmp_path, 1e-6, 0.1, 12))
    assert points[0].mean == pytest.approx(points[0].loss)
    seed_everything(lock, 0)
    model, task = build_model(lock), make_task(lock)
    loader = train_loader(open_data_set(lock, tmp_path, "train"), lock, 0, task.collate)
    batches = [batch for batch, _ in zip(loader, range(2), strict=False)]
    with torch.no_grad():
        losses = [float(task.loss()(model(batch.image), batch.target)) for batch in batches]
    assert points[0].loss == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_the_command_writes_a_plot_and_a_suggestion(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=12)
    (tmp_path / "spec.yaml").write_text(SPEC)

    def tune(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ratc", "tune", "lr", str(tmp_path / "spec.yaml"), *options]
        return subprocess.run(
            command, cwd=tmp_path.parent, env=environment(), capture_output=True, text=True, timeout=HANGS_S
        )

    done = tune("--steps", "60", "--low", "1e-5")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs/tiny/learning-rate"
    found = json.loads((folder / "curve.json").read_text())
    assert 1e-5 < found["learning_rate"] < 1
    assert found["global_batch_size"] == 4
    assert f"learning rate {found['learning_rate']:.1e}: " in done.stdout
    picture = ElementTree.parse(folder / "curve.svg").getroot()
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    assert [line.get("class") for line in lines] == ["loss", "mean"]
    assert all(len((line.get("points") or "").split()) == len(found["points"]) for line in lines)
    assert (folder / "compiled" / "lock.yaml").exists()
    assert not (folder / "checkpoints").exists()

    # It is a fact from now on: a spec that wants it takes it, in a measurement of its own, too.
    (tmp_path / "spec.yaml").write_text(SPEC.replace("epochs: 1", "epochs: 1, learning_rate: auto"))
    command = [sys.executable, "-m", "ratc", "compile", str(tmp_path / "spec.yaml"), "-o", str(tmp_path / "out")]
    compiled = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=HANGS_S)
    assert compiled.returncode == 0, compiled.stderr
    written = (tmp_path / "out/lock.yaml").read_text()
    assert f"learning_rate: {found['learning_rate']!r}  # measured on" in written
    assert f"over {len(found['points'])} steps of 4 samples" in written

    nothing = tune("--low", "1e-12", "--high", "1e-10", "--steps", "12")
    assert nothing.returncode == 1
    assert "error[R549]" in nothing.stderr
    assert json.loads((folder / "curve.json").read_text())["learning_rate"] is None
    wrong = tune("--low", "1", "--high", "1e-3")
    assert (wrong.returncode, "the first rate is below the last" in wrong.stderr) == (2, True)
