"""The learning rate as a pure function of the optimizer step.

Nothing is stored: a resumed run gets the same rate for the same step, with DeepSpeed's optimizer offload as well, after
which a stateful scheduler resumes with a wrong rate.
"""

from __future__ import annotations

import math

from ratc_runtime.config.sections import Training


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Return the rate of optimizer step `step` (the first is 0) if an epoch has `steps_per_epoch` steps.

    Linear warm-up over `warmup_epochs`, reaching the full rate at its last step. Then cosine decay to
    `min_learning_rate` at the end of training, steps by `step_gamma` every `step_epochs`, or constant. Each extension
    begins this again, with its own rate, warm-up and number of epochs.
    """
    if training.extensions:
        part, begun = _part(training, step // steps_per_epoch)
        return learning_rate(part, step - begun * steps_per_epoch, steps_per_epoch)
    warmup = round(training.warmup_epochs * steps_per_epoch)
    peak = training.learning_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    if training.scheduler == "cosine":
        total = training.epochs * steps_per_epoch
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        low = training.min_learning_rate
        return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if training.scheduler == "step":
        return float(peak * training.step_gamma ** (step // steps_per_epoch // training.step_epochs))
    return peak


def _part(training: Training, epoch: int) -> tuple[Training, int]:
    """Return the plan of the part of the training that an epoch is in, as if it were alone, and its first epoch."""
    begun = max((number for number, part in enumerate(training.extensions, 1) if part.after <= epoch), default=0)
    ends = [*(part.after for part in training.extensions), training.epochs]
    first = ends[begun - 1] if begun else 0
    part = training.replace(epochs=ends[begun] - first, extensions=[])
    if begun:
        added = training.extensions[begun - 1]
        part = part.replace(learning_rate=added.learning_rate, warmup_epochs=added.warmup_epochs)
    return part, first
