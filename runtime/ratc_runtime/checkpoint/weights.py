"""The plain weights of any checkpoint.

Of a file and of the shards of FSDP2, only the model's part is read. DeepSpeed's own functions merge the shards of its
ZeRO stages, in float32 and without a GPU. Objects in these files other than tensors are loaded only if that is known to
run no code, or if the checkpoint is trusted.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ratc_runtime.checkpoint.files import is_sealed
from ratc_runtime.checkpoint.header import UNREADABLE, open_content, unusable
from ratc_runtime.config.yaml_file import open_regular
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import trusted

#: The folder in which Accelerate has DeepSpeed write, and the file of the weights if ZeRO cuts nothing.
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_WRITTEN = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}
TAG, WHOLE = "pytorch_model", "mp_rank_00_model_states.pt"
_ALONE = "save the weights alone: `torch.save(model.state_dict(), …)`, or as .safetensors"


def load_weights(path: Path, trust: bool = False, plain: bool = False) -> dict[str, torch.Tensor]:
    """Return the model's whole weights and buffers by name, on the CPU, from a checkpoint or an exported file.

    With `plain`, a file of another program is taken, too: a state dict that `torch.save` wrote, alone or under `model`
    or `state_dict`. Shards may hold objects that only a pickle which runs code can load: these need trust
    (`trusted.allows`). Raises R508 if it is damaged, R520 if the shards of a folder cannot be merged, R584 without
    trust.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            open_regular(path).close()
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise RuntimeFinding("R508", f"weights {path} cannot be read", str(error)) from None
    if plain and path.is_file() and not is_sealed(path):
        return _tensors(path, _plain(path))
    content = open_content(path)
    return _tensors(path, _consolidated(path, content, trust) if path.is_dir() else content.get("model"))


def load_into(model: nn.Module, name: str, path: Path, trust: bool = False) -> None:
    """Load a checkpoint's weights into the model that a lock calls `name`.

    Raises R509 if they do not fit the model, and the errors of `load_weights`.
    """
    try:
        model.load_state_dict(load_weights(path, trust))
    except RuntimeError as error:
        raise RuntimeFinding(
            "R509",
            f"the weights of {path} do not fit the model {name}",
            str(error)[:600],
            "a model that was handed to UnifiedTrainer is not in its lock: build it yourself, and load the weights with"
            " ratc_runtime.checkpoint.weights.load_weights",
        ) from None


def _plain(path: Path) -> Any:
    """Return the state dict of a file that another program wrote. Raises R508 if that takes running code."""
    with open_regular(path) as file:
        if not file.read(2).startswith((b"PK", b"\x80")):  # an archive of today's torch.save, a pickle of an older one
            raise unusable(path, "it is another kind of file than `torch.save` writes", _ALONE)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than tensors and plain values, and loading that would run code"
        if "Unsupported operand" in str(error):  # of protocols 4 and 5, whatever the file holds
            reason = "its pickle has another protocol than 2, the one that torch reads without running code"
        raise unusable(path, reason, _ALONE) from None
    except UNREADABLE as error:
        raise unusable(path, f"torch cannot load it: {type(error).__name__}: {error}"[:600], _ALONE) from None
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return content[key]
    return content


def _tensors(path: Path, weights: Any) -> dict[str, torch.Tensor]:
    """Return the weights; raise R508 unless they are dense tensors by name."""
    if not isinstance(weights, dict):
        raise unusable(path, "it does not map names to weights", _ALONE)
    for name, value in weights.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided):
            raise unusable(path, f"its entry {name!r:.80} is not a dense tensor by name", _ALONE)
    return dict(weights)


def _consolidated(path: Path, header: dict[str, Any], trust: bool) -> dict[str, torch.Tensor]:
    if json.loads(header["lock"]).get("fsdp2") is not None:
        return _of_fsdp2(path)
    trust = trusted.allows(path, trust)
    try:
        stage = json.loads(header["lock"])["engine"]["zero_stage"]
        with contextlib.nullcontext() if trust else _harmless():
            weights = _whole_file(path) if stage == 0 else _shards(path)
    except pickle.UnpicklingError as error:
        if trust:
            raise _not_joinable(path, error) from error
        raise RuntimeFinding(
            "R584",
            f"the shards of {path} hold more than tensors and plain values",
            str(error)[:600],
            f"reading them may run code: {trusted.HELP}",
        ) from None
    except (*UNREADABLE, ImportError) as error:
        raise _not_joinable(path, error) from error
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _of_fsdp2(path: Path) -> dict[str, torch.Tensor]:
    from ratc_runtime.checkpoint import distributed

    try:
        return distributed.read_weights(path / distributed.FOLDER)
    except UNREADABLE as error:
        raise _not_joinable(path, error) from error


def _whole_file(path: Path) -> Any:
    return torch.load(path / TAG / WHOLE, map_location="cpu", weights_only=False)["module"]


def _shards(path: Path) -> Any:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # It tells of every shard on stdout and stderr.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(path), tag=TAG)


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    """Have `torch.load` refuse to run code from files, except for DeepSpeed's own classes. This affects calls of
    `torch.load` in other libraries, too.
    """
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_of_deepspeed()):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _of_deepspeed() -> list[Any]:
    """Return the classes of DeepSpeed that its files hold: wrappers around numbers."""
    found: list[Any] = []
    for module, names in _WRITTEN.items():
        with contextlib.suppress(ImportError):
            loaded = importlib.import_module(module)
            found += [getattr(loaded, name) for name in names if hasattr(loaded, name)]
    return found


def _not_joinable(path: Path, error: Exception) -> RuntimeFinding:
    return RuntimeFinding(
        "R520", f"the shards of {path} cannot be put together", f"{type(error).__name__}: {error}"[:600]
    )
