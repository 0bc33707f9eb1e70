"""Hugging Face's Trainer under a plan of ratc's.

    from ratc_runtime.integrations.transformers import PlanCallback, last_checkpoint, training_arguments
    from transformers import Trainer

    plan = ratc_runtime.plan()
    arguments = training_arguments(plan, logging_steps=10)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[PlanCallback(plan)])
    trainer.train(resume_from_checkpoint=last_checkpoint(plan))

The batch sizes, the precision, the seed and the loader processes are the plan's. The callback holds the Trainer against
them, stops it at a step boundary when the job asks for that, and writes results.json.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ratc_runtime.models import load_torchvision  # noqa: F401  # transformers imports torchvision

# isort: split
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ratc_runtime.errors import warn
from ratc_runtime.output.memory_report import start_measuring
from ratc_runtime.program.memory import device_of
from ratc_runtime.program.plan import ProgramPlan

#: A checkpoint's folder, by the optimizer steps that were done.
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def training_arguments(plan: ProgramPlan, **more: Any) -> TrainingArguments:
    """Return the Trainer's arguments of a plan; `more` are further ones, and replace those that the plan leaves open.
    Raises TypeError if they set a value that the plan decides.
    """
    on_cpu = plan.lock.hardware.device == "cpu"
    several = plan["world_size"] > 1
    fitting = {
        "learning_rate": plan["learning_rate"],
        "num_train_epochs": plan["epochs"],
        "dataloader_num_workers": plan["num_workers"],
        "report_to": "none",
    }
    decided = {
        "output_dir": str(plan.checkpoint_dir),
        "per_device_train_batch_size": plan["micro_batch_size"],
        "gradient_accumulation_steps": plan["gradient_accumulation_steps"],
        "auto_find_batch_size": False,
        "bf16": plan["bf16"],
        "fp16": plan["fp16"],
        "tf32": True if plan["tf32"] else None,
        "seed": plan["seed"],
        "use_cpu": on_cpu,
        "ddp_backend": plan.lock.parallel.backend if several else None,
    }
    if clash := sorted(more.keys() & decided.keys()):
        raise TypeError(f"the plan decides {', '.join(clash)}: set them in the spec")
    return TrainingArguments(**{**fitting, **more, **decided})


def last_checkpoint(plan: ProgramPlan) -> str | None:
    """Return the newest whole checkpoint to go on from; None if there is none, or the run starts from the beginning."""
    found = plan.checkpoint_dir.glob("checkpoint-*") if plan.resume else ()
    steps = [(_CHECKPOINT.fullmatch(path.name), path) for path in found]
    for _, path in sorted(((int(match[1]), path) for match, path in steps if match), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_bytes())
        except (OSError, ValueError):
            warn(f"{path} is skipped: it is not complete")  # the Trainer writes this file last
            continue
        return str(path)
    return None


class PlanCallback(TrainerCallback):
    """Holds the Trainer to the plan, and takes word between it and the job."""

    def __init__(self, plan: ProgramPlan) -> None:
        self.plan = plan
        self.stopping = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Raise R503 if the Trainer runs with other values than the lock. The micro-batch is compared with that of its
        arguments, the one that it found itself after running out of memory, and that of a loader of the program's own.
        """
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        sizes = (
            args.per_device_train_batch_size * max(1, args.n_gpu),
            state.train_batch_size,
            _micro_batch(train_dataloader, args.world_size),
        )
        planned = self.plan["micro_batch_size"]
        self.plan.verify(
            micro_batch_size=next((size for size in sizes if size not in (None, planned)), planned),
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            world_size=args.world_size,
            precision=precision,
        )
        start_measuring(device_of(self.plan.lock))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save and stop if the job asks for it."""
        if self.plan.should_stop():
            self.stopping = control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # for which there may be no time

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the evaluation out if the run stops in the middle of an epoch."""
        if self.stopping:
            control.should_evaluate = False

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave word that all is saved, or write the results."""
        if self.stopping:
            self.plan.stopped()
            return
        last: dict[str, Any] = {}
        for entry in state.log_history:
            last |= entry
        self.plan.finished(
            steps=state.global_step,
            metrics=last,
            memory=self.plan.memory(),
            micro_batch_size=state.train_batch_size or args.per_device_train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            world_size=args.world_size,
        )


def _micro_batch(loader: Any, processes: int) -> int | None:
    """Return the samples that a loader of the Trainer's yields to one process at a time; None if it does not know.

    Accelerate splits the batches of such a loader, or gives each process whole ones (`accelerate.data_loader`).
    """
    sampler = getattr(loader, "batch_sampler", None)
    size = getattr(sampler, "batch_size", None)
    if not isinstance(size, int):
        return None
    is_split = getattr(sampler, "split_batches", False) or getattr(loader, "split_batches", False)
    return size // processes if is_split else size
