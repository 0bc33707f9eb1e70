"""A Lightning run that stops at any step continues to the same losses, with each sample read once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ratc_runtime.models import load_torchvision  # noqa: F401  # lightning imports torchvision
from torch.utils.data import DataLoader, Dataset

pytest.importorskip("lightning")

import lightning
from ratc_runtime.integrations.lightning import PlanCallback, last_checkpoint, trainer_arguments

#: Its warnings are of classes of its own. pytest-xdist hands them to a process that cannot import Lightning, and ends.
pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
#: 60 samples of 8 are 8 batches, the last a smaller one, and 4 steps of an epoch.
SAMPLES, EPOCHS = 60, 3
Log = list[tuple[int, list[int], str]]


class Samples(Dataset[Any]):
    """Numbers with noise from all three generators, if `noisy`."""

    def __init__(self, noisy: bool) -> None:
        self.noisy = noisy

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        noise = torch.rand(2) + random.random() + float(np.random.rand()) if self.noisy else 0
        return index, torch.tensor([index / SAMPLES, 1.0]) + 0.01 * noise


class Module(lightning.LightningModule):
    """A net with dropout that writes down the samples and the loss of each batch."""

    fails_at = -1

    def __init__(self, output: Path, stop_at: int, total_steps: bool) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        self.output, self.stop_at, self.total_steps = output, stop_at, total_steps
        self.log_of_batches: Log = []

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        indices, numbers = batch
        if self.global_step == self.fails_at:
            raise MemoryError
        loss: torch.Tensor = (self.net(numbers) - numbers[:, :1]).square().mean()
        self.log_of_batches.append((self.current_epoch, indices.tolist(), loss.item().hex()))
        if self.global_step + 1 == self.stop_at:
            (self.output / "STOP").touch()
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        torch.rand(3)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.total_steps:  # as OneCycleLR asks for it: Lightning then makes the loaders before it reads their states
            assert self.trainer.estimated_stepping_batches == 4 * EPOCHS
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def stateful(*arguments: Any, **more: Any) -> DataLoader[Any]:
    module = pytest.importorskip("torchdata.stateful_dataloader")
    loader: DataLoader[Any] = module.StatefulDataLoader(*arguments, **more)
    return loader


def train(plan: Any, loader: DataLoader[Any], stop_at: int = 0, total_steps: bool = False, **more: Any) -> Log:
    """The batches of one run, from the newest checkpoint if there is one."""
    module = Module(plan.output_dir, stop_at, total_steps)
    trainer = lightning.Trainer(**trainer_arguments(plan, **QUIET), callbacks=[PlanCallback(plan, **more)])
    trainer.fit(module, loader, DataLoader(Samples(noisy=True), 8), ckpt_path=last_checkpoint(plan))
    (plan.output_dir / "STOP").unlink(missing_ok=True)
    return module.log_of_batches


@pytest.mark.parametrize("make", [DataLoader, stateful])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("generator", [False, True])
def test_a_run_stopped_at_any_step_continues_to_the_same_losses(
    make: Any, workers: int, generator: bool, make_plan: Any
) -> None:
    """Inside an epoch, after its last step, and twice. Random numbers of loader processes are the loader's to keep."""
    plan = make_plan()
    noisy = make is DataLoader or workers == 0

    def run(stop_at: int = 0, total_steps: bool = workers == 0) -> Log:
        lightning.seed_everything(7)
        own = torch.Generator().manual_seed(3) if generator else None
        loader = make(Samples(noisy), 8, shuffle=True, num_workers=workers, generator=own)
        return train(plan, loader, stop_at, total_steps)

    whole = run()
    for epoch in range(EPOCHS):
        read = [index for number, indices, _ in whole if number == epoch for index in indices]
        assert sorted(read) == list(range(SAMPLES))
    for stops in ((3,), (4,), (6, 7), (8, 11)):
        (plan.checkpoint_dir / "last.ckpt").unlink()
        runs = [run(stop_at) for stop_at in (*stops, 0)]
        steps = [after - before for before, after in zip((0, *stops[:-1]), stops, strict=True)]
        assert [len(log) for log in runs[:-1]] == [2 * number for number in steps]
        assert [batch for log in runs for batch in log] == whole


def test_a_run_killed_inside_an_epoch_continues_from_the_last_save(
    make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    lightning.seed_everything(7)
    whole = train(plan, DataLoader(Samples(noisy=True), 8, shuffle=True))
    (plan.checkpoint_dir / "last.ckpt").unlink()
    lightning.seed_everything(7)
    monkeypatch.setattr(Module, "fails_at", 7)
    with pytest.raises(MemoryError):
        train(plan, DataLoader(Samples(noisy=True), 8, shuffle=True), save_every_n_steps=2)
    monkeypatch.undo()
    saved = torch.load(plan.checkpoint_dir / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    lightning.seed_everything(7)
    assert train(plan, DataLoader(Samples(noisy=True), 8, shuffle=True)) == whole[12:]


def test_a_checkpoint_without_positions_is_loaded_with_a_warning(
    make_plan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of before there were any, or of another number of processes."""
    plan = make_plan()
    train(plan, DataLoader(Samples(noisy=False), 8), stop_at=6)
    path = plan.checkpoint_dir / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["ratc_position"] *= 2
    torch.save(saved, path)
    assert len(train(plan, DataLoader(Samples(noisy=False), 8))) == 24 - 12
    assert "the checkpoint lacks the position of each process" in capsys.readouterr().err
