"""Lightning's Trainer under a plan of ratc's.

    from ratc_runtime.integrations.lightning import PlanCallback, last_checkpoint, trainer_arguments
    import lightning

    plan = ratc_runtime.plan()
    lightning.seed_everything(plan["seed"], workers=True)
    loader = DataLoader(data, batch_size=plan["micro_batch_size"], num_workers=plan["num_workers"], shuffle=True)
    trainer = lightning.Trainer(**trainer_arguments(plan), callbacks=[PlanCallback(plan)])
    trainer.fit(module, loader, ckpt_path=last_checkpoint(plan))

The processes, the precision and the accumulation are the plan's. The callback holds the Trainer against them, saves
after each epoch, saves and stops at a step boundary when the job asks for that, and writes results.json. A run that
continues reads each sample once, also inside an epoch (`lightning_position`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any

from ratc_runtime.models import load_torchvision  # noqa: F401  # torchmetrics imports torchvision

# isort: split
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden

from ratc_runtime.integrations.lightning_position import Position
from ratc_runtime.output.memory_report import start_measuring
from ratc_runtime.program.memory import device_of
from ratc_runtime.program.plan import ProgramPlan

#: Lightning's names of precisions.
PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
#: The newest checkpoint, in the plan's folder for them.
LAST = "last.ckpt"
#: The key of a position in a checkpoint.
_POSITION = "ratc_position"


def trainer_arguments(plan: ProgramPlan, **more: Any) -> dict[str, Any]:
    """Return the Trainer's keywords of a plan; `more` are further ones, and replace those that the plan leaves open.

    Raises TypeError for a keyword that the plan decides.
    """
    fitting: dict[str, Any] = {"max_epochs": plan["epochs"]}
    if plan["world_size"] > 1:
        fitting["strategy"] = DDPStrategy(process_group_backend=plan.lock.parallel.backend)
    decided = {
        "accelerator": "cpu" if plan.lock.hardware.device == "cpu" else "gpu",
        "devices": plan["processes_per_node"],
        "num_nodes": plan["nodes"],
        "precision": PRECISIONS[plan["precision"]],
        "accumulate_grad_batches": plan["gradient_accumulation_steps"],
        "default_root_dir": str(plan.output_dir),
    }
    if clash := sorted(more.keys() & decided.keys()):
        raise TypeError(f"the plan decides {', '.join(clash)}: set them in the spec")
    return {**fitting, **more, **decided}


def last_checkpoint(plan: ProgramPlan) -> str | None:
    """Return the newest checkpoint to go on from; None if there is none, or the run starts from the beginning."""
    path = plan.checkpoint_dir / LAST
    return str(path) if plan.resume and path.exists() else None


class PlanCallback(Callback):
    """Holds the Trainer to the plan, and takes word between it and the job.

    It saves after each epoch, and after every `save_every_n_steps` optimizer steps of the run if that is given. With
    `free_gradients` it frees the gradients after each optimizer step, as ratc's own loop does.
    """

    def __init__(self, plan: ProgramPlan, save_every_n_steps: int | None = None, free_gradients: bool = True) -> None:
        self.plan, self.free_gradients = plan, free_gradients
        self.save_every_n_steps = save_every_n_steps
        self.stopping = self._ended = False
        self._step = 0
        self._updated = False
        self._position = Position()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise R503 if the Trainer runs with other values than the lock."""
        found = {
            "gradient_accumulation_steps": trainer.accumulate_grad_batches,
            # Under a launcher that started more processes each would train by itself.
            "world_size": max(trainer.world_size, int(os.environ.get("WORLD_SIZE") or 1)),
            "precision": next((name for name, text in PRECISIONS.items() if text == trainer.precision), None),
        }
        sizes = _batch_sizes(trainer)
        # Of several loaders one has the samples that are counted.
        if sizes and self.plan["micro_batch_size"] not in sizes:
            found["micro_batch_size"] = sizes[0]
        self.plan.verify(**found)
        self.stopping, self._step = False, trainer.global_step
        start_measuring(device_of(self.plan.lock))
        self._position.start(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record where the order of the epoch is drawn."""
        self._position.begin_epoch(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Free the gradients of the last optimizer step, which Lightning keeps until the next backward pass.

        So the forward pass takes no more memory than is predicted. Gradients are left alone if they may be used: with
        `free_gradients=False`, manual optimization, or a hook of the module's or a callback's before or in zero_grad.
        """
        if self._updated and self.free_gradients and not _uses_gradients(trainer, pl_module):
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
        self._updated = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if the job asks for it, after an optimizer step."""
        self._position.end_batch(batch_idx)
        if trainer.global_step == self._step or self.stopping:
            return
        self._step = trainer.global_step
        self._updated = True
        if self.plan.should_stop():
            self.stopping = trainer.should_stop = True
            # Lightning does not stop before these, and would validate first, for which there may be no time.
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
            trainer.limit_val_batches = 0
            if not trainer.is_last_batch:  # otherwise the end of the epoch follows, which saves
                self._save(trainer)
                self.plan.stopped()
        elif self.save_every_n_steps and self._step % self.save_every_n_steps == 0 and not trainer.is_last_batch:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the training draw the same random numbers with and without a validation."""
        self._position.end_validation()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the run stopped inside the epoch, and has saved."""
        if not self.stopping or trainer.is_last_batch:
            self._save(trainer)
            if self.stopping:
                self.plan.stopped()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results, unless the run stopped and will continue."""
        self._ended = True
        if not self.stopping:
            self._finish(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results of a run that stopped after its last step: Lightning does not begin it again."""
        if not self._ended:
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        self.plan.finished(
            steps=trainer.global_step,
            metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
            memory=self.plan.memory(),
            gradient_accumulation_steps=trainer.accumulate_grad_batches,
            world_size=trainer.world_size,
        )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the positions of all ranks; Lightning calls this on every rank."""
        checkpoint[_POSITION] = self._position.gather(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the position of this rank."""
        self._position.load(trainer, checkpoint.get(_POSITION))

    def _save(self, trainer: Trainer) -> None:
        """Write the checkpoint under another name, and give it its own when it is whole; every rank calls this."""
        path = self.plan.checkpoint_dir / LAST
        unfinished = path.with_name(f".{LAST}")
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                shutil.rmtree(path)  # a sharded strategy's is a folder
            os.replace(unfinished, path)
        trainer.strategy.barrier()


def _uses_gradients(trainer: Trainer, module: LightningModule) -> bool:
    """Whether the module, or a callback, may use the gradients of a step after it."""
    hooked = is_overridden("optimizer_zero_grad", module) or is_overridden("on_before_zero_grad", module)
    hooked |= any(
        is_overridden("on_before_zero_grad", callback, Callback) for callback in getattr(trainer, "callbacks", ())
    )
    return hooked or not module.automatic_optimization


def _batch_sizes(trainer: Trainer) -> list[int]:
    """Return the batch size of each training loader that knows it, by itself or by its batch sampler."""
    loaders = CombinedLoader(trainer.train_dataloader).flattened
    sizes = ((getattr(one, "batch_size", None), getattr(one, "batch_sampler", None)) for one in loaders)
    found = (size or getattr(sampler, "batch_size", None) for size, sampler in sizes)
    return [size for size in found if isinstance(size, int)]
