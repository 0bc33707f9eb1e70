"""Batch norm with one value per channel: torch refuses it, and a smaller last batch may cause it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import default_collate

from ratc_runtime.checkpoint import rng_state, set_rng_state
from ratc_runtime.data import pytree
from ratc_runtime.data.loading import TrainOrder
from ratc_runtime.data.samples import checked, name_of
from ratc_runtime.data.survey import each
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import normalisation


def check_last_batch(engine: Any, dataset: Any, order: TrainOrder, apart: bool = False) -> None:
    """Raise R575 before training if the last step of an epoch would give one sample to a module that cannot take it.

    The model is run on one sample and restored. Skipped if it cannot run on one rank alone (ZeRO-3). With `apart`
    another process reads the sample (`ratc_runtime.data.survey.each`).
    """
    share = order.rest // (order.world * order.accumulation)
    if not order.rest or share > 1 or order.steps * order.global_batch <= order.length or engine.local_module is None:
        return
    model = engine.module
    if any(isinstance(part, torch.nn.SyncBatchNorm) for part in model.modules()):
        return
    if not any(isinstance(part, normalisation.KINDS) for part in model.modules()):
        return
    image = next(
        (found for found in each(dataset, _image, range(min(8, len(dataset))), apart) if found is not None), None
    )
    if image is None:
        return
    random, training = rng_state(), model.training
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    model.train()
    try:
        with torch.no_grad(), engine.autocast():
            engine.local_module(pytree.to_device(image, engine.world.device))
    except ValueError as error:
        found = normalisation.explain(error, model)
        if found is not None:
            raise RuntimeFinding(found.code, found.message, found.note, found.help) from None
    except Exception:  # the first step will raise any other error
        pass
    finally:
        model.train(training)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        set_rng_state(random)


def _image(dataset: Any, position: int) -> Any:
    """Return the image of one sample as a batch; None if it cannot be read."""
    try:
        return default_collate([checked(dataset[position], name_of(dataset, position))["image"]])
    except Exception:  # it was or will be reported as a bad sample
        return None
