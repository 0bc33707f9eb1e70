"""The optimizers of `training.optimizer`, which the runtime makes in `engine/optimizer.py`, or own ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Usual learning rates, by the size of an update.
_OF_ADAM = "{} moves each weight by about the learning rate in each step; 1e-5 to 1e-2 is usual"
_OF_SGD = "{} moves weights by the learning rate times the gradient; 1e-3 to 1 is usual"


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer: its name for people, the keys that it reads, and its largest usual learning rate.

    ``momentum`` is the default of that key, None if the optimizer has none. ``zero`` says that the memory of its
    states under DeepSpeed's ZeRO is known, ``elementwise`` that its update of a shard is the shard of its update.
    ``trains`` names the weights that it trains if those are not all.
    """

    title: str
    betas: bool = False
    momentum: float | None = None
    zero: bool = False
    elementwise: bool = False
    largest_rate: float = 0.1
    rates: str = _OF_ADAM
    trains: str = ""


OPTIMIZERS = {
    "adamw": Optimizer("AdamW", betas=True, zero=True, elementwise=True),
    "adam": Optimizer("Adam", betas=True, zero=True, elementwise=True),
    "sgd": Optimizer("SGD", elementwise=True, momentum=0.9, largest_rate=10.0, rates=_OF_SGD),
    "adafactor": Optimizer(
        "Adafactor", rates="{} moves weights by the learning rate times their size; 1e-3 to 1e-2 is usual"
    ),
    "muon": Optimizer(
        "Muon",
        betas=True,
        momentum=0.95,
        trains="weights with two dimensions that are no embeddings; adamw trains all others",
    ),
}


def of(name: str) -> Optimizer:
    """Return what is known of the optimizer of a spec: of `package.module:callable` nothing."""
    return OPTIMIZERS.get(name) or Optimizer(f"`{name}`", largest_rate=math.inf)
