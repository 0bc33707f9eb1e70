"""Export plain weights of any checkpoint: `python -m ratc_runtime export CHECKPOINT -o model.safetensors`.

`ratc_runtime.checkpoint.weights` describes the reading of a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ratc_runtime.checkpoint.header import lock_of, read
from ratc_runtime.checkpoint.weights import load_weights
from ratc_runtime.errors import RuntimeFinding, say
from ratc_runtime.output.atomic import replacing

#: Endings of files that `torch.save` writes.
OF_TORCH = (".pt", ".pth", ".bin", ".ckpt")


def metadata(header: dict[str, Any]) -> dict[str, str]:
    """Return the metadata of an exported file from a header of `read`: text by name, as safetensors requires."""
    lock, progress = header["lock"], header["progress"]
    return {
        "format": "pt",
        "made_by": f"ratc {lock.get('ratc_version')}",
        "experiment_name": str(lock.get("experiment_name")),
        "task_type": str(lock.get("task_type")),
        "fingerprint": header["fingerprint"],
        "epoch": str(progress["epoch"]),
        "step": str(progress["step"]),
        "model": json.dumps(lock.get("model"), sort_keys=True),
    }


def export(checkpoint: Path, output: Path, force: bool = False, trust: bool = False) -> int:
    """Write a checkpoint's weights to `output` as safetensors, atomically; return the number of values.

    Raises R508 for a checkpoint that cannot be read, R520 if `output` exists (unless `force`), cannot be written, or
    has a name by which `torch.load` would be tried on it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if output.exists() and not force:
        raise RuntimeFinding("R520", f"{output} exists", help="name another file, or add --force")
    if output.suffix in OF_TORCH:
        message = f"weights are written as safetensors, and {output.name} is the name of a file of torch.save"
        raise RuntimeFinding("R520", message, help=f"name it {output.with_suffix('.safetensors').name}")
    header, weights = read(checkpoint), load_weights(checkpoint, trust)
    seen: set[int] = set()
    for name, value in weights.items():
        # Tied weights share memory; safetensors requires separate tensors.
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        weights[name] = value.clone() if shared else value.contiguous()
    try:
        with replacing(output, sync=True) as work:
            save_file(weights, work, metadata(header))
    except (OSError, SafetensorError) as error:
        raise RuntimeFinding("R520", f"cannot write {output}", str(error)) from None
    return sum(value.numel() for value in weights.values())


def _as_onnx(arguments: argparse.Namespace) -> int:
    # Imported here: it needs packages of its own, and builds the model.
    from ratc_runtime.extras import export_onnx
    from ratc_runtime.inference import check_trust

    if arguments.output.exists() and not arguments.force:
        raise RuntimeFinding("R520", f"{arguments.output} exists", help="name another file, or add --force")
    lock = lock_of(read(arguments.checkpoint))
    check_trust([lock.model.name], arguments.checkpoint, arguments.trust)
    try:
        size, apart = export_onnx.write(arguments.checkpoint, lock, arguments.output, arguments.trust)
    except OSError as error:
        raise RuntimeFinding("R520", f"cannot write {arguments.output}", str(error)) from None
    say(f"written: {arguments.output}, {size:,} bytes; run by ONNX Runtime: {apart:.1e} of the largest number apart")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Export a checkpoint; return 0, or 1 after a finding."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime export",
        description="Write the weights of a checkpoint as safetensors, or its model as ONNX (a file `.onnx`).",
    )
    parser.add_argument("checkpoint", type=Path, help="a .pt file or a DeepSpeed folder below checkpoints/")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file to write")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.add_argument("--trust", action="store_true", help="run code that the checkpoint names or holds")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output.suffix == ".onnx":
            return _as_onnx(arguments)
        numbers = export(arguments.checkpoint, arguments.output, arguments.force, arguments.trust)
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr)
        return 1
    say(f"written: {arguments.output}, {numbers:,} numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
