"""Counts the memory of steps that other trainers make, as `counting.py` does for ratc's own loop.

Run as a script, in a process of its own: `python counting_trainers.py TRAINER BATCH FOLDER < request.json` prints the
bytes. The request is that of a GPT-2.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(os.environ["RATC_TESTS"])

from ratc_runtime.models import load_torchvision  # noqa: F401  # lightning imports torchvision

# isort: split
import text_step
import torch
from ratc_runtime.program.plan import ProgramPlan, plan
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers.counting import allocated_peak

STEPS = 2


class Logits(nn.Module):
    """The logits (B, L, V) of token ids (B, L)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(input_ids=ids).logits
        return logits


def batches(plan: ProgramPlan, data: text_step.Pieces, batch: int) -> Any:
    many = STEPS * plan["gradient_accumulation_steps"] * batch
    return DataLoader([data[number]["input_ids"] for number in range(many)], batch)


def with_transformers(plan: ProgramPlan, net: nn.Module, data: text_step.Pieces, batch: int) -> Callable[[], Any]:
    from ratc_runtime.integrations.transformers import PlanCallback, training_arguments
    from transformers import Trainer

    class Collect(PlanCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            gc.collect()

    quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    arguments = training_arguments(plan, max_steps=STEPS, **quiet)
    return Trainer(model=net, args=arguments, train_dataset=data, callbacks=[Collect(plan)]).train


def with_accelerate(plan: ProgramPlan, net: nn.Module, data: text_step.Pieces, batch: int) -> Callable[[], Any]:
    from ratc_runtime.integrations.accelerate import make_accelerator

    accelerator = make_accelerator(plan)
    loss_of = text_step.next_token()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    model, optimizer, loader = accelerator.prepare(Logits(net), optimizer, batches(plan, data, batch))

    def train() -> None:
        for ids in loader:
            gc.collect()
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model(ids), ids))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    return train


def with_lightning(plan: ProgramPlan, net: nn.Module, data: text_step.Pieces, batch: int) -> Callable[[], Any]:
    import lightning
    from ratc_runtime.integrations.lightning import PlanCallback, trainer_arguments

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.logits, self.loss_of = Logits(net), text_step.next_token()

        def training_step(self, ids: torch.Tensor) -> torch.Tensor:
            gc.collect()
            loss: torch.Tensor = self.loss_of(self.logits(ids), ids)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)

    class Callback(PlanCallback):
        def _save(self, trainer: Any) -> None:
            """Nothing: a checkpoint is no part of the step."""

    module, loader = Module(), batches(plan, data, batch)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    keywords = trainer_arguments(plan, max_epochs=1, **quiet)
    trainer = lightning.Trainer(**keywords, callbacks=[Callback(plan)])
    return lambda: trainer.fit(module, loader)


TRAINERS = {"transformers": with_transformers, "accelerate": with_accelerate, "lightning": with_lightning}


def plan_of(content: dict[str, Any], batch: int, folder: Path) -> ProgramPlan:
    """Return a plan with the precision and the accumulation of a request."""
    import yaml

    lock = yaml.safe_load(Path(os.environ["RATC_TESTS"], "specs/text/compiled/text/local/lock.yaml").read_text())
    lock["training"] |= {
        "precision": content["training"]["precision"],
        "micro_batch_size": batch,
        "gradient_accumulation_steps": content["accumulation"],
        "global_batch_size": batch * content["accumulation"],
    }
    (folder / "lock.yaml").write_text(yaml.safe_dump(lock))
    return plan({"RATC_LOCK": str(folder / "lock.yaml"), "RATC_OUTPUT_DIR": str(folder)})


def storages(net: nn.Module) -> Iterator[torch.UntypedStorage]:
    found = [tensor.untyped_storage() for tensor in (*net.parameters(), *net.buffers())]
    yield from {storage._cdata: storage for storage in found}.values()


def main() -> None:
    content, (trainer, batch, folder) = json.load(sys.stdin), sys.argv[1:]
    torch.manual_seed(0)
    net = GPT2LMHeadModel(GPT2Config(**content["model"]["args"], use_cache=False))
    data = text_step.Pieces(content["data"]["args"]["length"], content["data"]["args"]["vocabulary"])
    plan = plan_of(content, int(batch), Path(folder))
    weights = sum(storage.nbytes() for storage in storages(net))
    train = TRAINERS[trainer](plan, net, data, int(batch))
    print(json.dumps(allocated_peak(train, weights)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
