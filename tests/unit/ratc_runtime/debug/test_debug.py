"""Debug runs: the report of each step is right, faults are named at their origin, other runs have no overhead."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime import debug
from ratc_runtime.config.lock import read_lock
from ratc_runtime.debug import describe
from ratc_runtime.debug.inspect import Inspector
from ratc_runtime.engine import TorchEngine
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.tasks.segmentation.losses import Combined
from ratc_runtime.training.run import Progress

from tests.effort import HANGS_S
from tests.helpers.lockfile import BASE, environment, results, run_training, write_data, write_lock
from tests.processes.test_distributed import accelerate_command, deepspeed_artifacts, two_processes

TWO_STEPS = {"training__max_steps_per_epoch": 2, "training__epochs": 1}


class Parts(torch.nn.Module):
    """A model that goes wrong as `how` says, in its second half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 3, padding=1)
        self.unused = torch.nn.Linear(2, 2)
        self.how = ""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(image))
        if self.how == "output":
            out = out / torch.zeros_like(out)
        if self.how == "gradient":
            out = out + torch.sqrt(torch.relu(out) * 0.0)
        return out


class Loss(torch.nn.Module):
    """A loss that can be NaN by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.how, self.inner = "", Combined()

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.inner(logits, target)
        return loss * float("inf") if self.how == "loss" else loss


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    yield
    torch.autograd.set_detect_anomaly(False)
    torch.use_deterministic_algorithms(False)


def run_of(folder: Path, **changes: Any) -> Any:
    """What an Inspector needs of a run, with a real engine."""
    lock = read_lock(write_lock(folder / "compiled", debug=True, **changes))
    torch.manual_seed(0)
    engine = TorchEngine(lock, Parts())
    return types.SimpleNamespace(
        lock=lock,
        engine=engine,
        world=engine.world,
        criterion=Loss(),
        output_dir=folder,
        steps=4,
        progress=Progress(),
        checkpoints=types.SimpleNamespace(newest=lambda: folder / "checkpoints/last.pt"),
        reporter=types.SimpleNamespace(say=print),
    )


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(2, 1, 8, 8, generator=generator), torch.rand(2, 1, 8, 8, generator=generator).round())
        for _ in range(2)
    ]


def step(run: Any, inspector: Inspector, given: list[tuple[torch.Tensor, torch.Tensor]] | None = None) -> Any:
    names: list[list[str]] = []

    def feed() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, batch in enumerate(given or batches()):
            names.append([f"sample{number}a", f"sample{number}b"])
            yield batch

    return inspector.around(names)(run.engine, run.criterion, feed(), 2, 0.01, 0.05)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "debug.jsonl").read_text().splitlines()]


def test_the_report_of_a_step_equals_a_step_computed_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, twin = run_of(tmp_path), run_of(tmp_path / "twin")
    result = step(run, Inspector(run))

    # The same step by hand.
    model, before = twin.engine.module, {k: p.detach().clone() for k, p in twin.engine.module.named_parameters()}
    losses = [twin.criterion(model(image), target) for image, target in batches()]
    (sum(losses) / 2).backward()
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    [told] = lines(tmp_path)
    assert result.losses.tolist() == [pytest.approx(loss.item()) for loss in losses]
    assert [micro["loss"] for micro in told["micro_batches"]] == [pytest.approx(loss.item()) for loss in losses]
    assert told["gradient_norm"] == pytest.approx(norm, rel=1e-5), "before clipping"
    assert norm > 0.05, "or clipping would not show"
    first = math.sqrt(sum(float(gradients[f"first.{k}"].double().square().sum()) for k in ("weight", "bias")))
    assert told["gradient_norms"]["first"] == pytest.approx(first, rel=1e-5)
    assert told["without_gradient"] == ["unused.weight", "unused.bias"]
    after = dict(run.engine.module.named_parameters())
    moved = math.sqrt(
        sum(float((after[f"second.{k}"] - before[f"second.{k}"]).square().sum()) for k in ("weight", "bias"))
    )
    weight = math.sqrt(sum(float(before[f"second.{k}"].square().sum()) for k in ("weight", "bias")))
    assert told["update_to_weight"]["second"] == pytest.approx(moved / weight, rel=1e-4)
    assert told["update_to_weight"]["unused"] == 0
    assert told["micro_batches"][1]["samples"] == ["sample1a", "sample1b"]
    image = told["micro_batches"][0]["input"]["input"]
    assert (image["shape"], image["dtype"], image["device"]) == ([2, 1, 8, 8], "float32", "cpu")
    assert image["norm"] == pytest.approx(float(batches()[0][0].norm()), rel=1e-5)
    assert told["micro_batches"][0]["loss_parts"] == {"inner": pytest.approx(losses[0].item())}

    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "debug.log").read_text().strip()
    for part in ("debug: epoch 1, step 1/4, rank 0", "sample1a, sample1b", "float32 (2, 1, 8, 8) cpu", "update/weight"):
        assert part in printed
    assert "2 without a gradient: unused.weight, unused.bias" in printed


def refused(run: Any, inspector: Inspector, given: Any = None) -> RuntimeFinding:
    with pytest.raises(RuntimeFinding) as caught:
        step(run, inspector, given)
    return caught.value


def test_r526_names_the_first_output_that_is_not_finite(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    inspector = Inspector(run)
    step(run, inspector)
    run.engine.module.how = "output"
    found = refused(run, inspector)
    assert found.code == "R526"
    assert "in epoch 1, step 1" in found.message
    # What is wrong is in the model's own forward: the layers below are well.
    assert "is that of `the model` (Parts); its input is finite" in found.note
    assert "samples of the micro-batch: sample0a, sample0b" in found.note
    assert len(lines(tmp_path)) == 2, "the step that failed is told, too"
    assert lines(tmp_path)[1]["micro_batches"][0]["output"]["output"]["not_finite"] == 128


def test_r526_distinguishes_input_weights_and_loss(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    inspector = Inspector(run)
    image, target = batches()[0]
    dark = image.clone()
    dark[0, 0, 0, 0] = float("nan")
    assert "the input of the model is not finite" in refused(run, inspector, [(dark, target)]).note
    run.criterion.how = "loss"
    assert "the outputs of all modules are finite, but the loss is not" in refused(run, inspector).note
    run.criterion.how = ""
    with torch.no_grad():
        run.engine.module.second.bias.fill_(float("inf"))
    note = refused(run, inspector).note
    assert "is that of `second` (Conv2d); its input is finite, its bias not" in note


def test_r527_names_the_line_of_the_forward_pass(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    inspector = Inspector(run)
    run.engine.module.how = "gradient"
    found = refused(run, inspector)
    assert found.code == "R527"
    assert "a gradient is NaN: Function 'MulBackward0' returned nan values" in found.message
    shown = found.note.splitlines()
    assert shown[-1].strip() == "out = out + torch.sqrt(torch.relu(out) * 0.0)"
    assert "test_debug.py" in shown[-2]
    assert not [line for line in shown if "ratc_runtime/training/step.py" in line or "torch/nn" in line]


def test_other_errors_of_backward_are_raised_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path)
    Inspector(run)
    value = torch.ones(2, requires_grad=True)
    kept = value.exp()
    loss = kept.sum()
    kept.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run.engine.backward(loss)
    # The line that made the value is shown beside torch's error.
    assert "kept = value.exp()" in capsys.readouterr().err


def test_fp16_loss_scale_search_is_not_reported_as_a_fault(tmp_path: Path) -> None:
    run = run_of(tmp_path, training__precision="fp16")
    Inspector(run)
    assert torch.is_anomaly_enabled()
    assert not torch.is_anomaly_check_nan_enabled()


def test_debug_variables_are_set_unless_already_set() -> None:
    found = {"NCCL_DEBUG": "WARN", "TORCH_DISTRIBUTED_DEBUG": "OFF"}
    debug.prepare(found, "nccl")
    assert (found["NCCL_DEBUG"], found["TORCH_DISTRIBUTED_DEBUG"]) == ("WARN", "OFF")
    assert found["CUDA_LAUNCH_BLOCKING"] == "1"
    assert [debug.prepare(one := {}, kind) or one["TORCH_DISTRIBUTED_DEBUG"] for kind in ("nccl", "gloo")] == [
        "DETAIL",
        "INFO",
    ]


def test_tensors_are_found_in_nested_batches() -> None:
    one, two, three = torch.zeros(1), torch.ones(2), torch.arange(3)
    found = describe.tensors({"image": [one, two], "boxes": {"labels": three}, "name": "a"}, "target")
    assert [(name, tuple(value.shape)) for name, value in found] == [
        ("target.image[0]", (1,)),
        ("target.image[1]", (2,)),
        ("target.boxes.labels", (3,)),
    ]
    assert describe.record(three)["mean"] == 1.0
    assert describe.record(torch.tensor([1.0, float("nan")]))["not_finite"] == 1
    assert describe.record(torch.empty(0))["min"] is None
    assert describe.is_finite([torch.ones(1), torch.tensor(True)])
    assert not describe.is_finite({"a": torch.tensor([float("inf")])})


def test_parameters_are_grouped_to_fit_a_screen() -> None:
    flat = [f"layer{number}.weight" for number in range(100)]
    deep = [f"backbone.blocks.{number}.attention.weight" for number in range(8)] + ["head.weight", "scale"]
    assert describe.depth(flat) == 1
    assert describe.depth(deep) == 3
    assert [describe.group(name, 3) for name in deep[-3:]] == ["backbone.blocks.7", "head", "scale"]


def test_a_subset_of_samples_behaves_like_the_whole_data_set() -> None:
    class Whole:
        names, missing = ["a", "b", "c"], ["d"]

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> str:
            return self.names[index]

    few = debug.FirstSamples(Whole(), 2)
    assert (len(few), few[1], few.names, few.missing) == (2, "b", ["a", "b"], ["d"])
    assert list(few) == ["a", "b"]
    assert len(debug.FirstSamples(Whole(), 9)) == 3
    with pytest.raises(AttributeError):
        few.target  # noqa: B018


@pytest.mark.slow
def test_a_debug_run_is_short_and_has_the_losses_of_a_normal_run(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=8, val=9, test=9)
    whole = run_training(write_lock(tmp_path / "a", output_dir="out-a", **TWO_STEPS))
    short = run_training(write_lock(tmp_path / "b", output_dir="out-b", debug=True, **TWO_STEPS))
    assert (whole.returncode, short.returncode) == (0, 0), short.stderr
    assert short.stdout.count("debug: epoch 1, step ") == 2
    assert not list((tmp_path / "out-a").glob("debug.*"))
    one, other = results(tmp_path / "out-a"), results(tmp_path / "out-b")
    assert one["epochs"][0]["train_loss"] == other["epochs"][0]["train_loss"]
    assert (one["test"]["samples"], other["test"]["samples"]) == (9, 4)


@pytest.mark.slow
def test_runs_without_debug_do_not_import_the_debug_package(project: Path) -> None:
    code = (
        "import sys, torch\nfrom ratc_runtime import train\n"
        "assert train.main(sys.argv[1:]) == 0\n"
        "assert not [name for name in sys.modules if name.startswith('ratc_runtime.debug.')]\n"
        "assert not torch.is_anomaly_enabled()"
    )
    lock = write_lock(project / "compiled", training__epochs=1)
    command = [sys.executable, "-c", code, "--lock", str(lock)]
    done = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_gradients_and_updates_under_zero3_equal_those_of_one_process(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=8)
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 3, padding=1))\n"
    )
    model = {**BASE["model"], "name": "mine:net", "args": {}}
    alone = run_training(write_lock(tmp_path / "one", output_dir="out-one", debug=True, model=model, **TWO_STEPS))
    assert alone.returncode == 0, alone.stderr
    engine = {"use_accelerate": True, "deepspeed": True, "zero_stage": 3}
    files = deepspeed_artifacts(tmp_path / "zero", 3, "fp32")
    lock = two_processes(tmp_path, "zero", engine, files, debug=True, model=model, **TWO_STEPS)
    command = accelerate_command(lock)
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    for one, other in zip(lines(tmp_path / "out-one"), lines(tmp_path / "out-zero"), strict=True):
        for key in ("gradient_norms", "weight_norms", "update_to_weight"):
            assert other[key] == pytest.approx(one[key], rel=1e-3), key
