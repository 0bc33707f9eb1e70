"""Plain weights out of any checkpoint: `python -m ratc_runtime.export CHECKPOINT -o model.safetensors`.

Of a file the model's part is taken; the shards of DeepSpeed's ZeRO stages are put together by DeepSpeed's own
functions, in float32 and without a GPU. What those files hold beside tensors is read only if that is known to run no
code, unless `--trust` is given.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ratc_runtime import trusted
from ratc_runtime.checkpoint.files import beside, sync_folder
from ratc_runtime.checkpoint.header import UNREADABLE, open_content, read
from ratc_runtime.errors import RuntimeFinding

#: The folder in which Accelerate has DeepSpeed write, and the file of the weights where ZeRO cuts nothing.
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_WRITTEN = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}
TAG, WHOLE = "pytorch_model", "mp_rank_00_model_states.pt"


def load_weights(path: Path, trust: bool = False) -> dict[str, torch.Tensor]:
    """Return the model's weights and buffers by name, on the CPU, from a checkpoint or from an exported file.

    Shards may hold what only a pickle that runs code can give: that is read only if it is trusted (`trusted.allows`).
    Raises R508 where it is damaged, R520 where the shards of a folder cannot be put together, R584 without trust.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)  # type: ignore[no-any-return]
        except (OSError, SafetensorError) as error:
            raise RuntimeFinding("R508", f"weights {path} cannot be read", str(error)) from None
    content = open_content(path)
    return _consolidated(path, content, trust) if path.is_dir() else dict(content["model"])


def _consolidated(path: Path, header: dict[str, Any], trust: bool) -> dict[str, torch.Tensor]:
    stage = json.loads(header["lock"])["engine"]["zero_stage"]
    trust = trusted.allows(path, trust)
    try:
        with contextlib.nullcontext() if trust else _harmless():
            weights = _whole(path) if stage == 0 else _shards(path)
    except pickle.UnpicklingError as error:
        if trust:
            raise _apart(path, error) from error
        raise RuntimeFinding(
            "R584",
            f"the shards of {path} hold more than tensors and plain values",
            str(error)[:600],
            f"to read them may run code: {trusted.HELP}",
        ) from None
    except (*UNREADABLE, ImportError, AttributeError) as error:
        raise _apart(path, error) from error
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _whole(path: Path) -> Any:
    return torch.load(path / TAG / WHOLE, map_location="cpu", weights_only=False)["module"]


def _shards(path: Path) -> Any:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # It tells of every shard on stdout and stderr.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(path), tag=TAG)


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    """Have torch read files without running what they name, but for what DeepSpeed itself writes; others' calls of
    `torch.load`, too.
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
    """Classes of DeepSpeed's that its own files hold: numbers in a coat."""
    found: list[Any] = []
    for module, names in _WRITTEN.items():
        with contextlib.suppress(ImportError):
            loaded = importlib.import_module(module)
            found += [getattr(loaded, name) for name in names if hasattr(loaded, name)]
    return found


def _apart(path: Path, error: Exception) -> RuntimeFinding:
    return RuntimeFinding(
        "R520", f"the shards of {path} cannot be put together", f"{type(error).__name__}: {error}"[:600]
    )


def metadata(header: dict[str, Any]) -> dict[str, str]:
    """Return what an exported file says of itself: text by name, as safetensors allows, from a header `read` gave."""
    lock, progress = header["lock"], header["progress"]
    return {
        "format": "pt",
        "made_by": f"ratc {lock['ratc_version']}",
        "experiment_name": lock["experiment_name"],
        "task_type": lock["task_type"],
        "fingerprint": header["fingerprint"],
        "epoch": str(progress["epoch"]),
        "step": str(progress["step"]),
        "model": json.dumps(lock["model"], sort_keys=True),
    }


def export(checkpoint: Path, output: Path, force: bool = False, trust: bool = False) -> int:
    """Write a checkpoint's weights to `output` as safetensors, in one piece; return how many numbers they are.

    Raises R508 for a checkpoint that cannot be read, R520 where `output` exists (unless `force`) or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if output.exists() and not force:
        raise RuntimeFinding("R520", f"{output} exists", help="name another file, or give --force")
    header, weights = read(checkpoint), load_weights(checkpoint, trust)
    seen: set[int] = set()
    for name, value in weights.items():
        # Tied weights lie in one place; safetensors wants each in its own.
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        weights[name] = value.clone() if shared else value.contiguous()
    work = beside(output, "new")
    try:
        save_file(weights, work, metadata(header))
        with work.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(work, output)
        sync_folder(output.parent)
    except (OSError, SafetensorError) as error:
        raise RuntimeFinding("R520", f"cannot write {output}", str(error)) from None
    finally:
        with contextlib.suppress(OSError):
            work.unlink(missing_ok=True)
    return sum(value.numel() for value in weights.values())


def _as_onnx(arguments: argparse.Namespace) -> int:
    # Imported here: it needs packages of its own, and builds the model.
    from ratc_runtime import onnx_model
    from ratc_runtime.lock import lock_from
    from ratc_runtime.opened import check_trust

    if arguments.output.exists() and not arguments.force:
        raise RuntimeFinding("R520", f"{arguments.output} exists", help="name another file, or give --force")
    lock = lock_from(read(arguments.checkpoint)["lock"])
    check_trust([lock.model.name], arguments.checkpoint, arguments.trust)
    size, apart = onnx_model.write(arguments.checkpoint, lock, arguments.output, arguments.trust)
    print(f"written: {arguments.output}, {size:,} bytes; run by ONNX Runtime: {apart:.1e} of the largest number apart")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Export; return 0, or 1 after a finding."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime.export",
        description="Write the weights of a checkpoint as safetensors, or its model as ONNX (a file `.onnx`).",
    )
    parser.add_argument("checkpoint", type=Path, help="a .pt file or a DeepSpeed folder below checkpoints/")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file to write")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.add_argument("--trust", action="store_true", help="run code that the checkpoint names or holds")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output.suffix == ".onnx":
            return _as_onnx(arguments)
        numbers = export(arguments.checkpoint, arguments.output, arguments.force, arguments.trust)
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr)
        return 1
    print(f"written: {arguments.output}, {numbers:,} numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
