"""Batch norm with one value per channel: torch refuses it, and a smaller last batch may cause it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import default_collate

from ratc_runtime import pytree
from ratc_runtime.checkpoint import rng_state, set_rng_state
from ratc_runtime.data.loading import TrainOrder
from ratc_runtime.data.samples import checked, name_of
from ratc_runtime.data.survey import each
from ratc_runtime.errors import RuntimeFinding

#: The start of torch's error message (torch.nn.functional._verify_batch_size).
_SAID = "Expected more than 1 value per channel when training"
_KINDS = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.instancenorm._InstanceNorm)


def explain(error: BaseException, model: torch.nn.Module, samples: int | None = None) -> RuntimeFinding | None:
    """Return R575 with the module's name if `error` is torch's refusal; None for any other error.

    `samples` is the size of the micro-batch, if it is known.
    """
    if not isinstance(error, ValueError) or _SAID not in str(error):
        return None
    met, trace = None, error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        met = owner if isinstance(owner, _KINDS) else met
        trace = trace.tb_next
    name = next((name for name, module in model.named_modules() if module is met), "")
    where = f"module `{name}` ({type(met).__name__})" if met is not None else "a normalisation"
    size = "a micro-batch of one sample" if samples is None else f"a micro-batch of {samples}"
    return RuntimeFinding(
        "R575",
        f"{where} cannot normalise {size}: it has one value for each channel",
        str(error),
        "if the smaller last batch of an epoch brings it (`last_batch: keep`): set `training.last_batch: drop`, or a"
        " target_batch_size that leaves more samples over\n"
        "otherwise set a larger training.batch_size, or use GroupNorm or LayerNorm in the model",
        everywhere=False,
    )


def check_last_batch(engine: Any, dataset: Any, order: TrainOrder, apart: bool = False) -> None:
    """Raise R575 before training if the last step of an epoch would give one sample to a module that cannot take it.

    The model is run on one sample and restored. Skipped if it cannot run on one rank alone (ZeRO-3). With `apart`
    another process reads the sample (`ratc_runtime.data.survey.each`).
    """
    share = order.rest // (order.world * order.accumulation)
    if not order.rest or share > 1 or order.steps * order.global_batch <= order.length or engine.alone is None:
        return
    model = engine.module
    if any(isinstance(part, torch.nn.SyncBatchNorm) for part in model.modules()):
        return
    if not any(isinstance(part, _KINDS) for part in model.modules()):
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
            engine.alone(pytree.to_device(image, engine.world.device))
    except ValueError as error:
        found = explain(error, model)
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
