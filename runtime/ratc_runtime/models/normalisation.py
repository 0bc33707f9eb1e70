"""Normalisations of one value for each channel, which has no variance: torch's refusal, with the module's name."""

from __future__ import annotations

import torch

from ratc_runtime.errors import RuntimeFinding

#: Modules whose functions raise it.
KINDS = (
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.modules.instancenorm._InstanceNorm,
    torch.nn.GroupNorm,
)
#: How torch's errors begin: of a micro-batch (torch.nn.functional._verify_batch_size), and of one sample, whatever the
#: micro-batch (torch.nn.functional._verify_spatial_size).
_OF_BATCH, _OF_SAMPLE = "Expected more than 1 value per channel when training", "Expected more than 1 spatial element"


def is_of_each_sample(error: BaseException) -> bool:
    """Return whether torch refused to normalise one value of each sample. No other micro-batch would change that."""
    return isinstance(error, ValueError) and _OF_SAMPLE in str(error)


def explain(error: BaseException, model: torch.nn.Module) -> RuntimeFinding | None:
    """Return R575 for torch's refusal, with the module's name; None for any other error."""
    of_each = is_of_each_sample(error)
    if not of_each and not (isinstance(error, ValueError) and _OF_BATCH in str(error)):
        return None
    met, trace = None, error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        met = owner if isinstance(owner, KINDS) else met
        trace = trace.tb_next
    name = next((name for name, module in model.named_modules() if module is met), "")
    where = f"module `{name}` ({type(met).__name__})" if met is not None else "a normalisation"
    if of_each:
        return RuntimeFinding(
            "R575",
            f"{where} cannot normalise a sample: it has one value for each channel",
            str(error),
            "set a larger data.image_size, or let the model shrink its maps less before that module; or use GroupNorm"
            " or LayerNorm there",
            everywhere=False,
        )
    return RuntimeFinding(
        "R575",
        f"{where} cannot normalise a micro-batch of one sample: it has one value for each channel",
        str(error),
        "if the smaller last batch of an epoch causes it (`last_batch: keep`): set `training.last_batch: drop`, or a"
        " target_batch_size that leaves more samples over\n"
        "otherwise set a larger training.batch_size, or use GroupNorm or LayerNorm in the model",
        everywhere=False,
    )
