"""What the training loop costs: ratc's step against a bare PyTorch loop, Lightning and the HF Trainer, side by side.

`python benchmarks/overhead.py` prints the table of docs/develop/speed.md. Every contender trains the same model on the
same data in memory with the same batch, accumulation, clipping and AdamW (fused), in a process of its own; the
contenders take turns, `--rounds` times. A step's time is what passes between the ends of two optimizer steps. On
a machine shared with others read the CPU time: it counts only what the process itself did.

`--device cuda` does the same on one GPU, with NVML's share of time in which it was idle. It has never been run.
Needs the extras `runtime` and `benchmark`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MICRO, ACCUMULATION, LIMIT, RATE = 4, 2, 1.0, 1e-3
#: Channels, layers, pixels to a side, and optimizer steps of the first contender's run.
MODELS = {"small": (8, 2, 16, 300), "large": (24, 4, 48, 60)}
WARM_UP = 10
CONTENDERS = ("bare", "ratc", "lightning", "hf")


class Images:
    """Noise and a mask of it, in memory; `data_dir` holds nothing."""

    def __init__(self, data_dir: str, split: str, size: int, count: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(len(split))
        number = count if split == "train" else 2
        self.images = torch.rand(number, 3, size, size, generator=generator)
        self.masks = (self.images.mean(1, keepdim=True) > 0.5).float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "target": self.masks[index]}


def make_model(width: int, layers: int) -> Any:
    """Return a plain convolutional network from (B, 3, H, W) to logits (B, 1, H, W)."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    body: list[Any] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(layers):
        body += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
    return nn.Sequential(*body, nn.Conv2d(width, 1, 1))


def loss_of(logits: Any, target: Any) -> Any:
    """Return the mean binary cross-entropy."""
    from torch.nn import functional

    return functional.binary_cross_entropy_with_logits(logits.float(), target)


def make_loss() -> Any:
    """Return the loss, as a lock names it."""
    return loss_of


class Stopwatch:
    """Notes wall and CPU time at the end of each optimizer step; on a GPU once it has done its work."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.marks: list[tuple[float, float]] = []

    def __call__(self, *_: Any) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def result(self) -> dict[str, float]:
        """Return milliseconds a step: all of them after the warm-up, divided by their number."""
        first, last = self.marks[WARM_UP], self.marks[-1]
        steps = len(self.marks) - 1 - WARM_UP
        return {"wall": 1000 * (last[0] - first[0]) / steps, "cpu": 1000 * (last[1] - first[1]) / steps}


def optimizer_of(model: Any) -> Any:
    """Return the AdamW of the runtime: weights are decayed, vectors are not."""
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, fused=True)


def loader_of(data: Any) -> Any:
    """Return torch's own loader, without processes."""
    from torch.utils.data import DataLoader

    return DataLoader(data, batch_size=MICRO, shuffle=True, drop_last=True)


def bare(model: Any, data: Any, steps: int, device: str, watch: Stopwatch) -> None:
    """Train by a loop that does nothing else. It reads each step's loss, as every training script does."""
    from torch import nn

    model.to(device).train()
    optimizer, batches = optimizer_of(model), iter(loader_of(data))
    for _ in range(steps):
        total = 0.0
        for _ in range(ACCUMULATION):
            batch = next(batches)
            image, target = (batch[key].to(device, non_blocking=True) for key in ("image", "target"))
            loss = loss_of(model(image), target)
            (loss / ACCUMULATION).backward()
            total = total + loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(total / ACCUMULATION)
        watch()


def lightning(model: Any, data: Any, steps: int, device: str, watch: Stopwatch) -> None:
    """Train by Lightning's Trainer, with all that can be turned off turned off."""
    import lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, number: int) -> Any:
            loss = loss_of(self.net(batch["image"]), batch["target"])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return optimizer_of(self.net)

        def on_train_batch_end(self, outputs: Any, batch: Any, number: int) -> None:
            if (number + 1) % ACCUMULATION == 0:
                watch()

    pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_steps=steps,
        accumulate_grad_batches=ACCUMULATION,
        gradient_clip_val=LIMIT,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    ).fit(Module(), loader_of(data))


def hf(model: Any, data: Any, steps: int, device: str, watch: Stopwatch) -> None:
    """Train by transformers' Trainer, with all that can be turned off turned off."""
    from torch import nn
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, image: Any, target: Any) -> dict[str, Any]:
            return {"loss": loss_of(self.net(image), target)}

    class Note(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=ACCUMULATION,
            max_grad_norm=LIMIT,
            max_steps=steps,
            learning_rate=RATE,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device == "cpu",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        wrapped = Wrapped()
        optimizers = (optimizer_of(wrapped), None)
        Trainer(wrapped, arguments, train_dataset=data, callbacks=[Note()], optimizers=optimizers).train()


def ratc(size: str, steps: int, device: str, watch: Stopwatch) -> None:
    """Train by the runtime's own loop, from a lock."""
    sys.path[:0] = [str(HERE), str(HERE.parent / "runtime"), str(HERE.parent)]
    from ratc_runtime.config.lock import read_lock
    from ratc_runtime.training import loop
    from ratc_runtime.training.components import Own
    from ratc_runtime.training.run import Run

    from tests.helpers.lockfile import write_lock

    width, layers, side, _ = MODELS[size]
    report = Run.report_step

    def noted(run: Any, *arguments: Any) -> None:
        report(run, *arguments)
        watch()

    Run.report_step = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = MICRO * ACCUMULATION * steps
        path = write_lock(
            folder / "lock",
            model={
                "name": "overhead:make_model",
                "multi_scale": False,
                "args": {"width": width, "layers": layers},
                "attention_memory": "full",
            },
            training__loss={"name": "overhead:make_loss", "args": {}},
            training__epochs=1,
            training__warmup_epochs=0.0,
            training__learning_rate=RATE,
            training__gradient_clipping=LIMIT,
            training__global_batch_size=MICRO * ACCUMULATION,
            training__micro_batch_size=MICRO,
            training__gradient_accumulation_steps=ACCUMULATION,
            data__dataset="overhead:Images",
            data__args={"size": side, "count": count},
            data__channels=3,
            data__image_size=[side, side],
            logging__log_every_steps=10,
            hardware__device=device,
        )
        lock = read_lock(path)
        loop.prepare_environment(lock)
        status = loop.start(lock, path, folder, folder / "out", True, Own(), time.perf_counter())
        if status:
            raise SystemExit(status)


def one(contender: str, size: str, device: str) -> None:
    """Train once in this process and print the figures as one line of JSON."""
    width, layers, side, steps = MODELS[size]
    watch = Stopwatch(device)
    idle = Idle() if device == "cuda" else None
    if contender == "ratc":
        ratc(size, steps, device, watch)
    else:
        # Lightning and transformers import torchvision, whose wheels do not load beside a CPU build of torch.
        from ratc_runtime.models import torchvision_operators

        torchvision_operators.define()
        data = Images("", "train", side, MICRO * ACCUMULATION * steps)
        {"bare": bare, "lightning": lightning, "hf": hf}[contender](
            make_model(width, layers), data, steps, device, watch
        )
    result = watch.result()
    if idle is not None:
        result["idle"] = idle.share()
    print("\nRESULT " + json.dumps(result), flush=True)


class Idle:
    """Samples NVML's utilisation while a contender trains; never run."""

    def __init__(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._card, self._nvml = pynvml.nvmlDeviceGetHandleByIndex(0), pynvml
        self._samples: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(0.1):
            self._samples.append(self._nvml.nvmlDeviceGetUtilizationRates(self._card).gpu)

    def share(self) -> float:
        """Return the part of the time, after the first kernel, in which no kernel ran."""
        self._done.set()
        self._thread.join()
        busy = self._samples[next((i for i, used in enumerate(self._samples) if used), 0) :]
        return 1 - statistics.mean(busy) / 100 if busy else 1.0


def run(contender: str, size: str, device: str) -> dict[str, float]:
    """Train once in a process of its own; return its figures."""
    command = [sys.executable, str(HERE / "overhead.py"), "--one", contender, "--model", size, "--device", device]
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    variables = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(HERE), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{contender} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(lines[0][7:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=tuple(MODELS), help="only this one")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.model, arguments.device)
        return
    for size in [arguments.model] if arguments.model else MODELS:
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(arguments.rounds):
            order = [*CONTENDERS[number % 4 :], *CONTENDERS[: number % 4]]
            rounds.append({name: run(name, size, arguments.device) for name in order})
        table(size, rounds)


def table(size: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print one model's table; ratios are taken within a round, where the machine was alike."""
    idle = "idle" in rounds[0]["bare"]
    print(f"\n| {size} model | wall ms | CPU ms | x bare, CPU: median (min to max) | x bare, wall |", end="")
    print(" GPU idle |" if idle else "")
    print("| --- |" + " --- |" * (5 if idle else 4))
    for name in CONTENDERS:
        middle = {kind: statistics.median(one[name][kind] for one in rounds) for kind in ("wall", "cpu")}
        cells = [f"{name}", f"{middle['wall']:.2f}", f"{middle['cpu']:.2f}"]
        for kind in ("cpu", "wall"):
            ratios = [one[name][kind] / one["bare"][kind] for one in rounds]
            cells.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        if idle:
            cells.append(f"{statistics.median(one[name]['idle'] for one in rounds):.0%}")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
