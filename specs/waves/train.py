"""Trains a small net on waves that it makes itself with Lightning's Trainer, as a plan of ratc's says."""

import argparse

import ratc_runtime
import torch
from ratc_runtime.integrations.lightning import PlanCallback, last_checkpoint, trainer_arguments
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# isort: split
import lightning

LENGTH = 24


def make_waves(number: int, seed: int) -> TensorDataset:
    """Noisy waves (number, LENGTH) of any length and phase, and the next value of each, (number, 1)."""
    random = torch.Generator().manual_seed(seed)
    period = 8 + 24 * torch.rand(number, 1, generator=random)
    phase = 2 * torch.pi * torch.rand(number, 1, generator=random)
    waves = torch.sin(2 * torch.pi * torch.arange(LENGTH + 1) / period + phase)
    waves[:, :-1] += 0.1 * torch.randn(number, LENGTH, generator=random)
    return TensorDataset(waves[:, :-1], waves[:, -1:])


class Forecast(lightning.LightningModule):
    """Waves (N, LENGTH) to their next values (N, 1)."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.net = nn.Sequential(nn.Linear(LENGTH, 48), nn.ReLU(), nn.Linear(48, 1))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        waves, following = batch
        return nn.functional.mse_loss(self.net(waves), following)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        waves, following = batch
        self.log("error", nn.functional.mse_loss(self.net(waves), following), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self.print(f"after step {self.global_step}: error {self.trainer.callback_metrics['error']:.4f}", flush=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--series", type=int, required=True)
    given = parser.parse_args()
    plan = ratc_runtime.plan()
    lightning.seed_everything(plan["seed"], workers=True)
    batch, workers = plan["micro_batch_size"], plan["num_workers"]
    train = DataLoader(make_waves(given.series, plan["seed"]), batch, shuffle=True, num_workers=workers)
    validation = DataLoader(make_waves(160, plan["seed"] + 1), batch, num_workers=workers)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    keywords = trainer_arguments(plan, num_sanity_val_steps=0, **quiet)
    trainer = lightning.Trainer(**keywords, callbacks=[PlanCallback(plan)])
    start = last_checkpoint(plan)
    if start is not None:
        print(f"going on from {start}", flush=True)
    trainer.fit(Forecast(plan["learning_rate"]), train, validation, ckpt_path=start)
    plan.leave()


if __name__ == "__main__":
    main()
