"""The model of a lock: RAT with the task's head, or a callable of the user's."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ratc_runtime.config.lock import Lock
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import hugging_face, mapping_inputs, rat_patches, torchvision_operators
from ratc_runtime.models.chunked_maps import Chunked
from ratc_runtime.models.frozen import freeze
from ratc_runtime.models.fused_maps import Fused
from ratc_runtime.models.import_callable import call, resolve
from ratc_runtime.models.lean_attention import keep_no_maps
from ratc_runtime.models.recompute import recompute
from ratc_runtime.output.sizes import counted
from ratc_runtime.tasks import make_task
from ratc_runtime.tasks.outputs import entry_of

#: Of RAT's arguments, the most that is built, as in the schema of a spec: a lock may be anybody's, and larger ones take
#: hours or all memory.
MOST = {
    "feature_dims": 65_536,
    "num_blocks": 1024,
    "num_heads": 65_536,
    "iters": 1024,
    "proj_kernel_size": 4096,
    "sga_kernel_size": 4096,
    "stride": 65_536,
    "mlp_ratio": 1024,
    "leading_tokens": 65_536,
}


def build_model(lock: Lock) -> nn.Module:
    """Build the model on the CPU. It maps images (B, C, H, W) or (B, C, D, H, W) (a list of them with `multi_scale`) to
    the outputs that the task scores.

    Parameters that the lock freezes need no gradient. Raises R509 if the model cannot be built from the lock's
    arguments, R373 if it has not the blocks to recompute, R585 or R586 if they cannot be frozen.
    """
    torchvision_operators.define()
    if lock.model.name == "rat":
        model: Any = _rat(lock)
    else:
        name, arguments = lock.model.name, lock.model.args
        maker = hugging_face.maker_of(name, resolve("model", name), arguments)
        model = call("model", name, maker, arguments)
        if not isinstance(model, nn.Module):
            raise RuntimeFinding("R509", f"model {name} returned {type(model).__name__}, not a torch.nn.Module")
        mapping_inputs.accept(model)
    if lock.model.output is not None:
        # A hook, so that the weights keep their names.
        model.register_forward_hook(partial(_pick, lock.model.output))
    rat_patches.keep_rotary_in_float32(model)
    if lock.model.attention_memory != "full":
        # Before checkpointing, which wraps the forward of the moment.
        keep_no_maps(model, Fused() if lock.model.attention_memory == "fused" else Chunked())
    recompute(model, lock.training.activation_checkpointing)
    freeze(model, lock.training.frozen)
    return model


def _pick(key: str, _module: nn.Module, _given: Any, output: Any) -> Any:
    """Return the entry of a model's output with the lock's key."""
    return entry_of(output, key)


def _rat(lock: Lock) -> nn.Module:
    try:
        rat = rat_patches.import_rat()
    except Exception as error:  # timm and torchvision below it fail in their own ways
        raise RuntimeFinding(
            "R509",
            "the built-in model rat cannot be imported",
            f"{type(error).__name__}: {error}",
            "install the runtime extra, which brings resolution-aware-transformer",
        ) from error
    arguments = lock.model.args
    for name, most in MOST.items():
        value = arguments.get(name)
        if isinstance(value, (int, float)) and value > most:
            raise RuntimeFinding("R509", f"model rat is not built with {name} {value:g}", f"at most {most:,}")
    channels = arguments.get("input_features", 3)
    dims = arguments.get("spatial_dims", 2)
    if channels != lock.data.channels or dims != lock.spatial_dims:
        raise RuntimeFinding(
            "R509",
            f"model rat takes {counted(channels, 'channel')} in {dims}D,"
            f" the data have {lock.data.channels} in {lock.spatial_dims}D",
            help="compile the spec again",
        )
    return make_task(lock).model(call("model", "rat", rat, arguments))
