"""Hugging Face Accelerate under a plan of ratc's.

    plan = ratc_runtime.plan()
    accelerator = make_accelerator(plan)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    first = load_last(accelerator, plan)
    for step in range(first, last):
        ...
        if plan.should_stop():
            save_state(accelerator, plan, step + 1)
            plan.stopped()
            break
    else:
        plan.finished(accuracy=0.93, memory=plan.memory())

The loop is the program's own. `specs/figures` is a whole one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ratc_runtime.program.plan import ProgramPlan

#: A checkpoint's folder, by the optimizer steps that were done.
_STEP = re.compile(r"step-(\d+)")
#: Which accelerator has prepared a loader last.
_prepared: WeakKeyDictionary[Any, PlannedAccelerator] = WeakKeyDictionary()


class PlannedAccelerator(Accelerator):  # type: ignore[misc]  # the package has no types
    """Compares the batches that its steps read with those of its plan.

    Between two batches of a step's loader is one backward pass, and no batch of another prepared loader. If that is
    more often so than that there is none, as in an evaluation or after a look at a first batch, its batches must be the
    plan's micro-batches. Of other loops, which use a batch several times or read several loaders, nothing is known.
    After one loader has matched, no other is compared.
    """

    def __init__(self, plan: ProgramPlan, **given: Any) -> None:
        super().__init__(**given)
        self._plan = plan
        self._backwards = self._batches = 0
        #: By loader: both of these at its last batch, and how much more often it was read as a step's than not.
        self._last: WeakKeyDictionary[Any, tuple[int, int, int]] = WeakKeyDictionary()
        self._is_compared = False

    def prepare_data_loader(self, *given: Any, **more: Any) -> Any:
        """As Accelerate's. The loader that is returned raises R503 at the second batch of a step's loader if the plan
        has another micro-batch.
        """
        loader = super().prepare_data_loader(*given, **more)
        kind = type(loader)

        def batches(own: Any) -> Iterator[Any]:
            for batch in kind.__iter__(own):
                if (reader := _prepared.get(own)) is not None:
                    reader._saw(own)
                yield batch

        if loader not in _prepared:
            # `__iter__` is looked up in the class, and Accelerate's loaders hide theirs behind the one of torch.
            own_class = type(kind.__name__, (kind,), {"__iter__": batches})
            object.__dict__["__class__"].__set__(loader, own_class)
        _prepared[loader] = self
        return loader

    def backward(self, loss: Any, **given: Any) -> None:
        """As Accelerate's."""
        super().backward(loss, **given)
        self._backwards += 1

    def _saw(self, loader: Any) -> None:
        """Note a batch, unless it is one of an evaluation: without gradients and with no model in training mode."""
        evaluates = not torch.is_grad_enabled() and not any(model.training for model in self._models)
        if self._is_compared or evaluates:
            return
        self._batches += 1
        backwards, batches, more = self._last.get(loader, (self._backwards, 0, 0))
        between = self._backwards - backwards
        if batches and self._batches == batches + 1 and between < 2:
            more += 1 if between else -1
        self._last[loader] = self._backwards, self._batches, more
        if more == 1 and (size := self._batch_of(loader)) is not None:
            self._plan.verify(micro_batch_size=size)
            self._is_compared = True

    def _batch_of(self, loader: Any) -> int | float | None:
        """The samples of a process in a batch of a loader; None if nothing tells them."""
        sampler = getattr(loader, "batch_sampler", None)
        given = (getattr(one, "batch_size", None) for one in (sampler, loader))
        size = next((one for one in given if isinstance(one, int)), None)
        parts = (sampler, loader, getattr(loader, "dataset", None))
        if size is None or not any(getattr(one, "split_batches", False) for one in parts):
            return size
        whole, rest = divmod(size, self.num_processes)
        return size / self.num_processes if rest else whole


def make_accelerator(plan: ProgramPlan, **more: Any) -> PlannedAccelerator:
    """Return the Accelerator of a plan, with the plan's seed set; `more` are further arguments of it.

    Raises R503 if its behaviour differs from the lock, here or in a step, and TypeError for an argument that
    the plan decides.
    """
    precision = plan["precision"]
    decided = {
        "gradient_accumulation_steps": plan["gradient_accumulation_steps"],
        "mixed_precision": "no" if precision == "fp32" else precision,
        "cpu": plan.lock.hardware.device == "cpu",
    }
    if clash := sorted(more.keys() & decided.keys()):
        raise TypeError(f"the plan decides {', '.join(clash)}: set them in the spec")
    accelerator = PlannedAccelerator(plan, **decided, **more)
    set_seed(plan["seed"])
    found = accelerator.mixed_precision
    plan.verify(
        gradient_accumulation_steps=accelerator.gradient_accumulation_steps,
        world_size=accelerator.num_processes,
        precision="fp32" if found == "no" else found,
    )
    return accelerator


def save_state(accelerator: Accelerator, plan: ProgramPlan, step: int) -> Path:
    """Save all prepared objects as the checkpoint after `step` steps, and remove the one before the last.

    Every rank calls this. The files become a checkpoint in one step, when they are complete on all ranks.
    """
    folder = plan.checkpoint_dir / f"step-{step}"
    unfinished = folder.with_name(f".{folder.name}")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a start that was killed
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        for _, old in _saved(plan)[:-2]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return folder


def load_last(accelerator: Accelerator, plan: ProgramPlan) -> int:
    """Load the newest checkpoint into all prepared objects; return its step, 0 if there is no checkpoint."""
    saved = _saved(plan) if plan.resume else []
    if not saved:
        return 0
    step, folder = saved[-1]
    accelerator.load_state(str(folder))
    return step


def _saved(plan: ProgramPlan) -> list[tuple[int, Path]]:
    """The checkpoints with their steps, the newest last."""
    found = [(_STEP.fullmatch(path.name), path) for path in plan.checkpoint_dir.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in found if match)
