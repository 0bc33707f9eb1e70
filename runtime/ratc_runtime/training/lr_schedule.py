"""The learning rate as a pure function of the optimizer step.

Nothing is stored: a resumed run gets the same rate for the same step, with DeepSpeed's optimizer offload as well, after
which a stateful scheduler resumes with a wrong rate.
"""

from __future__ import annotations

import math

from ratc_runtime.config.lock import Training


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Return the rate of optimizer step `step` (the first is 0) if an epoch has `steps_per_epoch` steps.

    Linear warm-up over `warmup_epochs`, reaching the full rate at its last step. Then cosine decay to
    `min_learning_rate` at the end of training, steps by `step_gamma` every `step_epochs`, or constant.
    """
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
