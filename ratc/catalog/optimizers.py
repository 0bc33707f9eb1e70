"""The optimizers of `training.optimizer`, which the runtime makes in `engine/optimizer.py`, or own ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Usual learning rates, by the size of an update.
_OF_ADAM = "{} moves each weight by about the learning rate in each step; 1e-5 to 1e-2 is usual"
_OF_LION = "{} moves each weight by the learning rate in each step; 1e-6 to 1e-3 is usual"
_OF_SGD = "{} moves weights by the learning rate times the gradient; 1e-3 to 1 is usual"

#: The spec's own `betas`, and those that Lion's paper found (arXiv 2302.06675).
_BETAS = 0.9, 0.999
_BETAS_OF_LION = 0.9, 0.99
#: Reasons in the words of a finding of FSDP2.
_WHOLE = "needs whole weights"
_POINTERS = "updates weights by their addresses, and takes no shards"


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer: its name for people, the keys that it reads, and its largest usual learning rate.

    ``betas`` and ``momentum`` are the defaults of these keys, None if the optimizer has none. ``zero`` says that the
    memory of its states under DeepSpeed's ZeRO is known. ``unsharded`` is the reason that FSDP2 does not go with it, ""
    if its update of a shard is the shard of its update. ``about`` names the weights that it trains, or the form of its
    states, if those are not all and fp32.
    """

    title: str
    betas: tuple[float, float] | None = None
    momentum: float | None = None
    zero: bool = False
    unsharded: str = ""
    largest_rate: float = 0.1
    rates: str = _OF_ADAM
    about: str = ""


_8BIT = "states of 8 bits, by bitsandbytes; of embeddings and of weights with fewer than 4096 numbers, of 32"

OPTIMIZERS = {
    "adamw": Optimizer("AdamW", _BETAS, zero=True),
    "adam": Optimizer("Adam", _BETAS, zero=True),
    "sgd": Optimizer("SGD", momentum=0.9, largest_rate=10.0, rates=_OF_SGD),
    "adafactor": Optimizer(
        "Adafactor",
        unsharded=_WHOLE,
        rates="{} moves weights by the learning rate times their size; 1e-3 to 1e-2 is usual",
    ),
    "muon": Optimizer(
        "Muon",
        _BETAS,
        momentum=0.95,
        unsharded=_WHOLE,
        about="weights with two dimensions that are not embeddings; adamw trains all others",
    ),
    "lion": Optimizer("Lion", _BETAS_OF_LION, rates=_OF_LION),
    "adamw_8bit": Optimizer("AdamW", _BETAS, unsharded=_POINTERS, about=_8BIT),
    "lion_8bit": Optimizer("Lion", _BETAS_OF_LION, unsharded=_POINTERS, rates=_OF_LION, about=_8BIT),
}


def of(name: str) -> Optimizer:
    """Return the facts on the optimizer of a spec; for `package.module:callable` those of an unknown optimizer."""
    return OPTIMIZERS.get(name) or Optimizer(f"`{name}`", unsharded=_WHOLE, largest_rate=math.inf)


def names(sharded: bool = False, zero: bool = False) -> str:
    """Return the built-in optimizers that work with FSDP2 or ZeRO, in the words of a help."""
    found = [
        f"`{name}`" for name, one in OPTIMIZERS.items() if (not sharded or not one.unsharded) and (not zero or one.zero)
    ]
    return f"{', '.join(found[:-1])} or {found[-1]}"
