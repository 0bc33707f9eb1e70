"""A rehearsal of the first step on a GPU: does the micro-batch fit, on every rank, before any weight is touched?

In the middle of a step one rank that runs out of memory leaves the others waiting in a collective. So the model runs
forward and backward once before, each rank for itself, with room taken for what the first update will allocate; then
the ranks agree, and where one failed all take a smaller micro-batch. Weights, buffers, gradients, optimizer and
random states are as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ratc_runtime import outofmemory
from ratc_runtime.checkpoint import rng_state, set_rng_state
from ratc_runtime.engine.optimizer import fused_for
from ratc_runtime.lock import Lock
from ratc_runtime.split import Split
from ratc_runtime.tasks.base import Task

FITS, MEMORY, OTHER = "fits", "memory", "other"
WHEN = "in the rehearsal of the first step"


def worthwhile(device: torch.device) -> bool:
    """Tell whether memory is worth a rehearsal: on a GPU. Host memory is swapped, and its lack kills the process."""
    return device.type == "cuda"


def settle(engine: Any, criterion: Callable[..., torch.Tensor], task: Task, split: Split) -> None:
    """Reduce the split until a step's forward and backward pass fit on every rank; every rank calls this.

    Raises R511 on every rank where not even a micro-batch of 1 fits. Where the model cannot run for itself (ZeRO-3,
    synchronised batch norm), or raises anything else, nothing is said: the first real step will say it.
    """
    world = engine.world
    if not worthwhile(world.device) or engine.alone is None or (world.size > 1 and _meets(engine.module)):
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
    buffers = [(buffer, buffer.detach().clone()) for buffer in engine.module.buffers()]
    outcome = FITS, ""
    try:
        _run(engine, criterion, task, lock)
    except Exception as error:  # the user's model may raise anything
        text = outofmemory.explain(error, device)
        outcome = (OTHER, "") if text is None else (MEMORY, text)
    for parameter in [] if engine.deepspeed else engine.module.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    set_rng_state(random)
    # The traceback is gone, and with it what held the failed step's tensors.
    outofmemory.give_back(device)
    return outcome


def _run(engine: Any, criterion: Callable[..., torch.Tensor], task: Task, lock: Lock) -> None:
    """Make the passes of a step, on noise of the lock's shape: the second micro-batch finds gradients there."""
    device, training = engine.world.device, lock.training
    wanted = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    engine.train()
    # DeepSpeed allocates its optimizer's state when it starts, torch in the first update: two moments a weight.
    missing = not engine.deepspeed and not engine.optimizer.state
    state = [torch.empty_like(parameter) for parameter in wanted for _ in range(2)] if missing else []
    for _ in range(min(2, training.gradient_accumulation_steps)):
        image, target = noise(task, lock, training.micro_batch_size, device)
        with engine.autocast():
            loss = criterion(engine.alone(image), target)
        if engine.deepspeed:
            # Not backward(): its hooks on the weights make the processes meet. Gradients are not kept.
            torch.autograd.grad(loss, wanted, allow_unused=True)
        else:
            loss.backward()
        del loss
    # The fused update takes nothing more; torch's work on lists takes the roots of all second moments at once.
    roots = [] if engine.deepspeed or fused_for(wanted) else [torch.empty_like(parameter) for parameter in wanted]
    del state, roots


def noise(task: Task, lock: Lock, count: int, device: torch.device) -> tuple[Any, Any]:
    """Return image (list of images with `multi_scale`) and target of `count` samples, in the shapes of the loader.

    Of several tasks each has its own: two mappings.
    """
    if task.parts:
        made = {name: noise(part, part.lock, count, device) for name, part in task.parts.items()}
        return {name: image for name, (image, _) in made.items()}, {name: target for name, (_, target) in made.items()}
    data = lock.data
    sizes = [[max(1, round(side * scale)) for side in data.image_size] for scale in data.scales]
    levels = [torch.rand(count, data.channels, *size, device=device) for size in sizes]
    return (levels if lock.model.multi_scale else levels[0]), task.example_target(count, device)


def _meets(model: nn.Module) -> bool:
    return any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())
