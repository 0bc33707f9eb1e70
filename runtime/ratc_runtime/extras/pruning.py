"""Pruning of weights, after training or gradually during it, by torch's own pruning methods.

During training the share grows as in Zhu & Gupta, "To prune, or not to prune" (2017): s(t) = S (1 - (1 - t)^3), t from
0 to 1 between two epochs. Within an epoch a weight that is zero before an optimizer step is zero after it. This rule
needs no state except the weights, so a resumed run prunes like an uninterrupted one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import prune

from ratc_runtime.config.lock import Lock
from ratc_runtime.config.sections import Compression

#: Layers to prune. Norms and biases have few values, and matter more.
PRUNED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prune_weights(model: nn.Module, sparsity: float, structured: bool = False) -> None:
    """Set the share `sparsity` of the weights of each linear and convolution layer to zero, permanently.

    These are the smallest ones by magnitude, or with `structured` whole output channels, the smallest by L2 norm.
    """
    method = prune.LnStructured(sparsity, n=2, dim=0) if structured else prune.L1Unstructured(sparsity)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, PRUNED):
                weight = layer.weight
                # Weights in channels-last layout cost a copy, and keep their layout.
                mask = method.compute_mask(weight, default_mask=torch.ones_like(weight))
                weight.mul_(mask)


def share(compression: Compression, epoch: int) -> float:
    """Return the share of zeros from the start of epoch `epoch` (from 0) on."""
    begin, end = compression.begin_epoch, compression.end_epoch
    if begin is None or end is None or epoch < begin:
        return 0.0
    passed = (epoch - begin + 1) / (end - begin + 1)
    return compression.sparsity * (1 - (1 - min(1.0, passed)) ** 3)


class Pruning:
    """Prunes a model during training according to its lock. Does nothing if the lock does not ask for it."""

    def __init__(self, lock: Lock, model: nn.Module) -> None:
        compression = lock.compression
        self._compression = compression if compression is not None and compression.begin_epoch is not None else None
        self._model, self._epoch = model, 0

    def begin(self, epoch: int, step: int) -> None:
        """Start an epoch, or continue it after `step` of its steps. At an epoch's start the share grows."""
        self._epoch = epoch
        if self._compression is not None and step == 0:
            sparsity = share(self._compression, epoch)
            if sparsity:
                prune_weights(self._model, sparsity, self._compression.structured)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep zeros at zero during an optimizer step."""
        if self._compression is None or not share(self._compression, self._epoch):
            yield
            return
        weights = [layer.weight for layer in self._model.modules() if isinstance(layer, PRUNED)]
        with torch.no_grad():
            zeros = [weight == 0 for weight in weights]
        yield
        with torch.no_grad():
            for weight, zero in zip(weights, zeros, strict=True):
                weight.masked_fill_(zero, 0)
