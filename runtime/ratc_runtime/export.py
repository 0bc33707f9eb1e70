"""Plain weights out of any checkpoint: `python -m ratc_runtime.export CHECKPOINT -o model.safetensors`.

Of a file the model's part is taken; the shards of DeepSpeed's ZeRO stages are put together by DeepSpeed's own
functions, in float32 and without a GPU. Those read pickles, which can run code: export folders you trust.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from ratc_runtime.checkpoint.files import beside, sync_folder
from ratc_runtime.checkpoint.header import UNREADABLE, open_content, read
from ratc_runtime.errors import RuntimeFinding

#: The folder in which Accelerate has DeepSpeed write, and the file of the weights where ZeRO cuts nothing.
TAG, WHOLE = "pytorch_model", "mp_rank_00_model_states.pt"


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the model's weights and buffers by name, on the CPU, from a checkpoint or from an exported file.

    Raises R508 where it is damaged, R520 where the shards of a folder cannot be put together.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)  # type: ignore[no-any-return]
        except (OSError, SafetensorError) as error:
            raise RuntimeFinding("R508", f"weights {path} cannot be read", str(error)) from None
    content = open_content(path)
    return _consolidated(path, content) if path.is_dir() else dict(content["model"])


def _consolidated(path: Path, header: dict[str, Any]) -> dict[str, torch.Tensor]:
    stage = json.loads(header["lock"])["engine"]["zero_stage"]
    try:
        if stage == 0:
            content = torch.load(path / TAG / WHOLE, map_location="cpu", weights_only=False)
            weights = content["module"]
        else:
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            # It tells of every shard on stdout and stderr.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                weights = get_fp32_state_dict_from_zero_checkpoint(str(path), tag=TAG)
    except (*UNREADABLE, ImportError, AttributeError) as error:
        raise RuntimeFinding(
            "R520", f"the shards of {path} cannot be put together", f"{type(error).__name__}: {error}"[:600]
        ) from error
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


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


def export(checkpoint: Path, output: Path, force: bool = False) -> int:
    """Write a checkpoint's weights to `output` as safetensors, in one piece; return how many numbers they are.

    Raises R508 for a checkpoint that cannot be read, R520 where `output` exists (unless `force`) or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if output.exists() and not force:
        raise RuntimeFinding("R520", f"{output} exists", help="name another file, or give --force")
    header, weights = read(checkpoint), load_weights(checkpoint)
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
    check_trust([lock.model.name], arguments.trust)
    size, apart = onnx_model.write(arguments.checkpoint, lock, arguments.output)
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
        numbers = export(arguments.checkpoint, arguments.output, arguments.force)
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr)
        return 1
    print(f"written: {arguments.output}, {numbers:,} numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
