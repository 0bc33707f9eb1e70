"""The training step. It does no I/O and logs nothing. The trace runs the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch

from ratc_runtime.distributed.phases import phase

#: The key of an optimizer's group with its factor of the learning rate (`training.parameter_groups`).
FACTOR = "learning_rate_factor"


class Engine(Protocol):
    """The interface of a step to torch, Accelerate or DeepSpeed (see engine/)."""

    @property
    def model(self) -> Callable[..., Any]:
        """The model, as the forward pass calls it."""

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, whose `lr` the step sets."""

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Return the context of one micro-batch; gradients are exchanged with the `last` one of a step."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forward and loss in the lock's precision."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-batch's loss, a scalar, divided by the accumulation."""

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        """Clip the gradients to a norm of `max_norm` (None: unclipped), step, and drop them.

        Return the norm before clipping, a scalar, if it is known.
        """


class StepResult(NamedTuple):
    """Loss of each micro-batch of this rank (A,), and the gradient's norm before clipping, if known."""

    losses: torch.Tensor
    gradient_norm: torch.Tensor | None


def training_step(
    engine: Engine,
    criterion: Callable[..., torch.Tensor],
    micro_batches: Iterable[tuple[Any, Any]],
    accumulation: int,
    learning_rate: float,
    max_norm: float | None,
    weights: Sequence[float] | None = None,
) -> StepResult:
    """Make one optimizer step from `accumulation` micro-batches of (image, target), already on the device.

    The gradient is that of the mean loss over all micro-batches and ranks. `weights` are factors of this rank's losses
    if its micro-batches differ in size. Gradients are reduced once, with the last micro-batch. They are clipped after
    any loss scale has been removed.
    """
    for group in engine.parameter_groups:
        group["lr"] = learning_rate * group.get(FACTOR, 1.0)
    losses = []
    for number, (image, target) in zip(range(accumulation), micro_batches, strict=False):
        with engine.accumulate(last=number == accumulation - 1):
            with phase("forward"), engine.autocast():
                loss = criterion(engine.model(image), target)
                if weights is not None:
                    loss = loss * weights[number]
            with phase("backward"):
                engine.backward(loss)
        losses.append(loss.detach().float())
    with phase("optimizer"):
        return StepResult(torch.stack(losses), engine.update(max_norm))
