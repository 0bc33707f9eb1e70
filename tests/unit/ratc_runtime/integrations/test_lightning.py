"""The arguments of Lightning's Trainer for a plan, and its callback in short trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import load_torchvision  # noqa: F401  # lightning imports torchvision

from tests.helpers.lockfile import results

pytest.importorskip("lightning")

import lightning
from ratc_runtime.integrations.lightning import PlanCallback, last_checkpoint, trainer_arguments
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

#: Its warnings are of classes of its own. pytest-xdist hands them to a process that cannot import Lightning, and ends.
pytestmark = pytest.mark.filterwarnings("ignore")
CARD = {"hardware__device": "cuda", "parallel__backend": "nccl"}
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Line(lightning.LightningModule):
    """A line, and the steps that it learnt in; `stop_at` is the step in which somebody leaves the stop file."""

    def __init__(self, output: Path, stop_at: int = 0) -> None:
        super().__init__()
        self.layer, self.output, self.stop_at = torch.nn.Linear(1, 1), output, stop_at
        self.pieces, self.validated = 0, 0

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.pieces += 1
        if self.stop_at and self.pieces == self.stop_at:
            (self.output / "STOP").touch()
        loss: torch.Tensor = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        self.validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Several(Line):
    """A line that learns from the first of several loaders."""

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        return super().training_step(batch["labelled"] if isinstance(batch, dict) else batch, number)


def fit(plan: Any, module: Line, batch: int = 8, start: str | None = None, **more: Any) -> lightning.Trainer:
    """Train on 64 samples, which is 8 pieces and 4 steps of an epoch."""
    keywords = {**trainer_arguments(plan, num_sanity_val_steps=0, **QUIET), **more}
    trainer = lightning.Trainer(**keywords, callbacks=[PlanCallback(plan)])
    data = DataLoader(TensorDataset(torch.ones(64, 1)), batch)
    trainer.fit(module, data, data, ckpt_path=start)
    return trainer


def test_the_trainer_s_arguments_have_the_values_of_the_plan(make_plan: Any) -> None:
    plan = make_plan(training__epochs=7)
    assert trainer_arguments(plan, log_every_n_steps=3) == {
        "max_epochs": 7,
        "log_every_n_steps": 3,
        "accelerator": "cpu",
        "devices": 1,
        "num_nodes": 1,
        "precision": "32-true",
        "accumulate_grad_batches": 2,
        "default_root_dir": str(plan.output_dir),
    }


@pytest.mark.parametrize(("precision", "name"), [("bf16", "bf16-mixed"), ("fp16", "16-mixed"), ("fp32", "32-true")])
def test_devices_and_precision_have_the_values_of_the_plan(make_plan: Any, precision: str, name: str) -> None:
    eight = {"parallel__nodes": 2, "parallel__processes_per_node": 4, "parallel__world_size": 8}
    batch = {"training__gradient_accumulation_steps": 1, "training__global_batch_size": 64}
    found = trainer_arguments(make_plan(training__precision=precision, **CARD, **eight, **batch))
    assert (found["accelerator"], found["devices"], found["num_nodes"]) == ("gpu", 4, 2)
    assert found["precision"] == name
    assert found["strategy"].process_group_backend == "nccl"


def test_only_arguments_that_the_plan_leaves_open_are_accepted(make_plan: Any) -> None:
    plan = make_plan()
    assert trainer_arguments(plan, max_epochs=1, strategy="fsdp")["strategy"] == "fsdp"
    with pytest.raises(TypeError, match="the plan decides devices, precision: set them in the spec"):
        trainer_arguments(plan, precision=16, devices=2)


@pytest.mark.parametrize(
    ("batch", "more", "said"),
    [
        (4, {}, "micro_batch_size: 4, the lock says 8"),
        (8, {"accumulate_grad_batches": 4}, "gradient_accumulation_steps: 4, the lock says 2"),
        (8, {"precision": "bf16-mixed"}, "precision: 'bf16', the lock says 'fp32'"),
        (8, {"precision": "64-true"}, "precision: None, the lock says 'fp32'"),
    ],
)
def test_r503_for_a_trainer_with_other_values(make_plan: Any, batch: int, more: dict[str, Any], said: str) -> None:
    plan = make_plan()
    with pytest.raises(RuntimeFinding, match=r"R503") as caught:
        fit(plan, Line(plan.output_dir), batch, **more)
    assert said in caught.value.render()
    assert not (plan.output_dir / "results.json").exists()


def test_the_micro_batch_is_known_from_a_batch_sampler_and_from_several_loaders(make_plan: Any) -> None:
    """Of several loaders one must have the plan's."""
    data = TensorDataset(torch.ones(64, 1))
    plan = make_plan()

    def trained(loader: Any, module: Line) -> None:
        keywords = trainer_arguments(plan, num_sanity_val_steps=0, **QUIET)
        lightning.Trainer(**keywords, callbacks=[PlanCallback(plan)]).fit(module, loader)

    for loader in (
        DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 4, False)),
        {"labelled": DataLoader(data, 4), "unlabelled": DataLoader(data, 16)},
    ):
        with pytest.raises(RuntimeFinding, match="R503") as caught:
            trained(loader, Several(plan.output_dir))
        assert "micro_batch_size: 4, the lock says 8" in caught.value.render()
    trained({"labelled": DataLoader(data, 8), "unlabelled": DataLoader(data, 8)}, Several(plan.output_dir))
    assert results(plan.output_dir)["steps"] == 3 * 4


def test_the_last_scores_are_recorded_at_the_end(make_plan: Any) -> None:
    plan = make_plan()
    fit(plan, Line(plan.output_dir))
    found = results(plan.output_dir)
    assert (found["steps"], found["world_size"], found["gradient_accumulation_steps"]) == (3 * 4, 1, 2)
    assert found["metrics"]["loss"] >= 0
    assert not (plan.output_dir / "STOPPED").exists()


@pytest.mark.parametrize("more", [{}, {"min_epochs": 3}, {"min_steps": 12, "min_epochs": 0}])
def test_a_stop_file_saves_and_stops_after_a_step(make_plan: Any, more: dict[str, Any]) -> None:
    plan = make_plan()
    stopped = Line(plan.output_dir, stop_at=11)  # the first piece of the sixth step, in the second epoch
    assert fit(plan, stopped, **more).global_step == 6
    assert stopped.validated == 8, "of the first epoch"
    assert (plan.output_dir / "STOPPED").exists()
    assert not (plan.output_dir / "results.json").exists()
    (plan.output_dir / "STOP").unlink()
    start = last_checkpoint(plan)
    assert start == str(plan.checkpoint_dir / "last.ckpt")
    continued = Line(plan.output_dir)
    assert fit(plan, continued, start=start, **more).global_step == 12
    assert results(plan.output_dir)["steps"] == 12
    assert continued.pieces == 12
    assert last_checkpoint(make_plan(resume=False)) is None
    assert [path.name for path in plan.checkpoint_dir.iterdir()] == ["last.ckpt"]


def test_a_stop_in_the_last_step_leaves_results_after_the_next_start(make_plan: Any) -> None:
    """Lightning begins no training then, so it calls no hook of its end."""
    plan = make_plan()
    assert fit(plan, Line(plan.output_dir, stop_at=24)).global_step == 12
    assert (plan.output_dir / "STOPPED").exists()
    (plan.output_dir / "STOP").unlink()
    continued = Line(plan.output_dir)
    fit(plan, continued, start=last_checkpoint(plan))
    assert continued.pieces == 0
    assert results(plan.output_dir)["steps"] == 12


def test_r503_for_more_processes_than_the_plan_has(make_plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts them; a Trainer of one device would train in each by itself."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    plan = make_plan()
    with pytest.raises(RuntimeFinding, match="R503") as caught:
        fit(plan, Line(plan.output_dir))
    assert "world_size: 2, the lock says 1" in caught.value.render()


def test_a_folder_in_the_place_of_the_checkpoint_is_replaced(make_plan: Any) -> None:
    """As a sharded strategy writes one."""
    plan = make_plan()
    (plan.checkpoint_dir / "last.ckpt").mkdir(parents=True)
    fit(plan, Line(plan.output_dir), max_epochs=1)
    assert (plan.checkpoint_dir / "last.ckpt").is_file()


class Watching(Line):
    """A line that looks at its gradients where the next step begins."""

    def __init__(self, output: Path) -> None:
        super().__init__(output)
        self.alive: list[bool] = []

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.alive.append(self.layer.weight.grad is not None)
        return super().training_step(batch, number)


class Halving(Watching):
    """One that keeps half of its gradients for the next step."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)


class Logging(lightning.Callback):
    """Looks at the gradients of a step before they are dropped."""

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None: ...


@pytest.mark.parametrize(
    ("kind", "more", "free", "kept"),
    [
        (Watching, {}, True, False),
        (Watching, {}, False, True),
        (Halving, {}, True, True),
        (Watching, {"callbacks": [Logging()]}, True, True),
    ],
)
def test_gradients_are_freed_after_a_step_unless_they_may_be_used(
    make_plan: Any, kind: type[Watching], more: dict[str, Any], free: bool, kept: bool
) -> None:
    """Of two pieces a step, the second finds the first one's; the first finds those of the last step, if any."""
    plan = make_plan(training__epochs=1)
    module = kind(plan.output_dir)
    keywords = {**trainer_arguments(plan, num_sanity_val_steps=0, **QUIET), "max_epochs": 1}
    callbacks = [PlanCallback(plan, free_gradients=free), *more.get("callbacks", [])]
    data = DataLoader(TensorDataset(torch.rand(64, 1)), 8)
    lightning.Trainer(**keywords, callbacks=callbacks).fit(module, data)
    assert module.alive == [False, True, *[kept, True] * 3]
