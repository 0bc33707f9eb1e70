"""The model of a checkpoint: built from its lock, with its weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from ratc_runtime.checkpoint.weights import load_into
from ratc_runtime.config.lock import Lock
from ratc_runtime.models.build import build_model


def restored(lock: Lock, path: Path, trust: bool = False) -> nn.Module:
    """Build the lock's model on the CPU and load the checkpoint's weights.

    A built-in model is first built on the meta device: a lock that does not fit the weights, and could ask for any
    size, is refused before memory is allocated. Raises the errors of `build_model` and `load_into`.
    """
    name = lock.model.name
    if ":" not in name:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is copied is the point
            load_into(build_model(lock), name, path, trust)
    model = build_model(lock)
    load_into(model, name, path, trust)
    return model
