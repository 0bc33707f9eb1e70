"""A rehearsal of the first steps on a GPU: check that the micro-batch fits on every rank, before weights change.

If one rank runs out of memory in the middle of a step, the others wait in a collective. So before the first step, each
rank alone makes three steps with the code of the real step, on noise. They allocate everything that a real step
allocates, in the same order: in the first step the optimizer's state comes after backward, in the others it exists
beside the activations. The rehearsal begins and ends with an empty cache, so that the real steps start alike. Then the
ranks compare, and if one failed, all take a smaller micro-batch. Weights, buffers, gradients, optimizer and random
states are restored.

The buckets for the exchange of gradients are not rehearsed: DistributedDataParallel has made them already, and
rearranges them in its second step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from ratc_runtime.checkpoint import rng_state, set_rng_state
from ratc_runtime.checkpoint.background import snapshot
from ratc_runtime.config.lock import Lock
from ratc_runtime.engine.optimizer import innermost
from ratc_runtime.tasks.base import Task
from ratc_runtime.training import out_of_memory
from ratc_runtime.training.micro_batch import Split
from ratc_runtime.training.step import StepResult, training_step

FITS, MEMORY, OTHER = "fits", "memory", "other"
WHEN = "in the rehearsal of the first step"
#: The optimizer's state exists from the second step on; the third finds the cache that all later ones find. Of random
#: models at random caps that passed two steps a fifth failed in the third, and none later
#: (tests/unit/ratc_runtime/training/test_memory_rehearsal_fits.py).
STEPS = 3
#: Micro-batches of a step, at most: the second finds gradients there, the third the second's cached blocks.
MICRO_BATCHES = 3


def worthwhile(device: torch.device) -> bool:
    """Return whether a rehearsal is useful: only on a GPU. Host memory is swapped, and its lack kills the process."""
    return device.type == "cuda"


def fit_micro_batch(engine: Any, criterion: Callable[..., torch.Tensor], task: Task, split: Split) -> None:
    """Reduce the split until three steps fit on every rank. Every rank calls this.

    Raises R511 on every rank if not even a micro-batch of 1 fits. Does nothing if the model cannot run on one rank
    alone (ZeRO-3, synchronised batch norm). Ignores any other error: the first real step will raise it.
    """
    world = engine.world
    if (
        not worthwhile(world.device)
        or engine.local_module is None
        or (world.size > 1 and _has_sync_batch_norm(engine.module))
    ):
        return
    while True:
        outcomes = world.gather(_attempt(engine, criterion, task, split.lock))
        failed = [(rank, text) for rank, (kind, text) in enumerate(outcomes) if kind == MEMORY]
        if not failed:
            return
        rank, text = failed[0]
        split.reduce(WHEN, rank, text, everywhere=True)
        engine.set_split(split.lock)
        if world.main:
            split.announce(engine.module)
            split.write()


def _attempt(engine: Any, criterion: Callable[..., torch.Tensor], task: Task, lock: Lock) -> tuple[str, str]:
    device = engine.world.device
    random = rng_state()
    # On the host: a copy on the device would lie between the steps' allocations.
    buffers = [(buffer, buffer.detach().to("cpu", copy=True)) for buffer in _buffers(engine.module, criterion)]
    restore = _saved(engine) if runs_itself(engine) else None
    outcome = FITS, ""
    out_of_memory.give_back(device)  # blocks cached while the model and a checkpoint were loaded
    try:
        _run(engine, criterion, task, lock)
    except Exception as error:  # the user's model may raise anything
        text = out_of_memory.explain(error, device)
        outcome = (OTHER, "") if text is None else (MEMORY, text)
    for parameter in [] if engine.deepspeed else engine.module.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    if restore is not None:
        restore()
    set_rng_state(random)
    # The traceback is gone, and with it its references to the failed step's tensors.
    out_of_memory.give_back(device)
    return outcome


def runs_itself(engine: Any) -> bool:
    """Return whether the rehearsal runs the optimizer: `RehearsalEngine` knows the allocations of three."""
    known = torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD
    return not engine.deepspeed and type(innermost(engine.optimizer)) not in known


def _saved(engine: Any) -> Callable[[], None]:
    """Return the function that restores the weights and the optimizer's state, from copies on the host."""
    optimizer, weights = innermost(engine.optimizer), list(engine.module.parameters())
    kept, state = snapshot(weights), snapshot(optimizer.state_dict())

    def restore() -> None:
        optimizer.state.clear()
        optimizer.load_state_dict(state)
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)

    return restore


def _buffers(*parts: Any) -> Iterator[torch.Tensor]:
    for part in parts:
        if isinstance(part, nn.Module):
            yield from part.buffers()


class RehearsalEngine:
    """The engine of a rehearsal: it allocates like the real one and uses no collective.

    It changes no weight, unless the optimizer itself has to run (`runs_itself`).
    """

    def __init__(self, engine: Any, accumulation: int) -> None:
        self.engine, self.accumulation = engine, accumulation
        self.model, self.autocast = engine.local_module, engine.autocast
        self.parameter_groups: list[dict[str, Any]] = []  # no learning rate is set
        self._wanted = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
        self._state: list[torch.Tensor] = []
        self._runs = runs_itself(engine)

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Return an empty context: no gradients are exchanged."""
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients of a loss, a scalar.

        With DeepSpeed they are not kept, because its hooks on weights start collectives.
        """
        loss = loss / self.accumulation
        if self.engine.deepspeed:
            torch.autograd.grad(loss, self._wanted, allow_unused=True)
        else:
            loss.backward()

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        """Clip, allocate the optimizer's memory, drop the gradients, and return their norm before clipping (a scalar).

        DeepSpeed allocates its state at its start.
        """
        if self.engine.deepspeed:
            return None
        norm = None
        if max_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.engine.module.parameters(), max_norm).detach()
        if self._runs:
            innermost(self.engine.optimizer).step()
        first = not self._state and not self.engine.optimizer.state
        for group in () if self._runs else self.engine.optimizer.param_groups:
            fused = group["fused"]
            updated = [parameter for parameter in group["params"] if parameter.grad is not None]
            if first and "betas" in group:  # in the order of Adam's `_init_group`: a count of steps, two moments
                for parameter in updated:
                    count = torch.zeros((), device=parameter.device if fused else "cpu")
                    self._state += [count, torch.zeros_like(parameter), torch.zeros_like(parameter)]
            elif first and group["momentum"]:
                self._state += [torch.zeros_like(parameter) for parameter in updated]
            # The fused update takes nothing more. Torch's work on lists takes the roots of all second moments of Adam,
            # and the sums of gradients and decay of SGD.
            nothing = fused or ("momentum" in group and not group["weight_decay"])
            copies = [] if nothing else [torch.empty_like(parameter) for parameter in updated]
            del copies
        for parameter in self.engine.module.parameters():
            parameter.grad = None
        return norm


def _run(engine: Any, criterion: Callable[..., torch.Tensor], task: Task, lock: Lock) -> None:
    """Make the steps, on noise of the lock's shape. Raises the errors of the model, the loss and torch."""
    training = lock.training
    count = min(MICRO_BATCHES, training.gradient_accumulation_steps)

    def batches() -> Iterator[tuple[Any, Any]]:
        while True:
            yield noise(task, lock, training.micro_batch_size, engine.world.device)  # no name here may keep it

    engine.train()
    rehearsed = RehearsalEngine(engine, count)
    result: StepResult | None = None
    for _ in range(STEPS):
        # The last step's losses are kept over the next one, as in the loop.
        result = training_step(
            rehearsed, criterion, batches(), count, training.learning_rate, training.gradient_clipping
        )
    del result


def noise(task: Task, lock: Lock, count: int, device: torch.device) -> tuple[Any, Any]:
    """Return image (list of images with `multi_scale`) and target of `count` samples, in the loader's shapes.

    Those of a custom task are its data set's example. With several tasks both are mappings by task.
    """
    if task.parts:
        made = {name: noise(part, part.lock, count, device) for name, part in task.parts.items()}
        return {name: image for name, (image, _) in made.items()}, {name: target for name, (_, target) in made.items()}
    known = task.example(count, device)
    if known is not None:
        return known
    data = lock.data
    sizes = [[max(1, round(side * scale)) for side in data.image_size] for scale in data.scales]
    levels = [torch.rand(count, data.channels, *size, device=device) for size in sizes]
    return (levels if lock.model.multi_scale else levels[0]), task.example_target(count, device)


def _has_sync_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())
