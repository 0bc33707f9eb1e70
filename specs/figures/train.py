"""Trains a small classifier of pictures that it draws itself with Hugging Face Accelerate, as a plan of ratc's says."""

import argparse

import ratc_runtime
import torch
from accelerate import DataLoaderConfiguration, skip_first_batches
from ratc_runtime.integrations.accelerate import load_last, make_accelerator, save_state
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SIDE = 16
FIGURES = ("disc", "square", "cross")


def draw(number: int, seed: int) -> TensorDataset:
    """Noisy grey pictures (number, 1, SIDE, SIDE) of figures of any place and size, and the figures' numbers."""
    random = torch.Generator().manual_seed(seed)
    kinds = torch.randint(len(FIGURES), (number,), generator=random)
    radius = torch.randint(3, 6, (number, 1, 1), generator=random)
    middle = torch.randint(6, SIDE - 6, (2, number, 1, 1), generator=random)
    across, down = (torch.arange(SIDE) - middle[0]).abs(), (torch.arange(SIDE)[:, None] - middle[1]).abs()
    disc = across**2 + down**2 <= radius**2
    square = torch.maximum(across, down) <= radius
    cross = (torch.minimum(across, down) <= 1) & square
    figures = torch.stack([disc, square, cross])[kinds, torch.arange(number)]
    noise = torch.randn(number, SIDE, SIDE, generator=random)
    return TensorDataset((figures + 0.3 * noise)[:, None], kinds)


def make_model() -> nn.Module:
    """Pictures (N, 1, SIDE, SIDE) to scores (N, len(FIGURES))."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, len(FIGURES))),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, required=True)
    given = parser.parse_args()
    plan = ratc_runtime.plan()
    accelerator = make_accelerator(plan, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan["learning_rate"])
    train, test = draw(given.pictures, plan["seed"]), draw(240, plan["seed"] + 1)
    batch, workers = plan["micro_batch_size"], plan["num_workers"]
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model,
        optimizer,
        DataLoader(train, batch, shuffle=True, drop_last=True, num_workers=workers),
        DataLoader(test, batch, num_workers=workers),
    )
    # The last pieces of an epoch make a step, however many they are.
    pieces = plan["gradient_accumulation_steps"]
    steps_in_epoch = -(-len(train_loader) // pieces)
    step = load_last(accelerator, plan)
    if step:
        accelerator.print(f"going on after step {step}")
    for epoch in range(step // steps_in_epoch, plan["epochs"]):
        train_loader.set_epoch(epoch)  # its own order, the same one if the run goes on here
        model.train()
        for pictures, kinds in skip_first_batches(train_loader, step % steps_in_epoch * pieces):
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(pictures), kinds)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            step += 1
            if plan.should_stop():
                save_state(accelerator, plan, step)
                plan.stopped()
                plan.leave()
                return
        save_state(accelerator, plan, step)
        accelerator.print(f"epoch {epoch + 1}: accuracy {score(accelerator, model, test_loader):.3f}", flush=True)
    accuracy = score(accelerator, model, test_loader)
    ran = {"micro_batch_size": batch, "world_size": accelerator.num_processes}
    plan.finished(accuracy=accuracy, steps=step, memory=plan.memory(), **ran)
    plan.leave()


@torch.no_grad()
def score(accelerator, model: nn.Module, loader: DataLoader) -> float:
    """The share of pictures, over all processes, whose figure is named rightly."""
    model.eval()
    right = [accelerator.gather_for_metrics(model(pictures).argmax(1) == kinds) for pictures, kinds in loader]
    return torch.cat(right).float().mean().item()


if __name__ == "__main__":
    main()
