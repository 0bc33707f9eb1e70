"""Export a trained model to ONNX, and compare both: `python -m ratc_runtime export CHECKPOINT -o model.onnx`.

RAT rotates its embeddings by complex numbers, which ONNX lacks. The angles depend on the image size alone. So for the
export every rotation becomes real arithmetic with sines and cosines computed by the published layer itself.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ratc_runtime import inference
from ratc_runtime.checkpoint.restored import restored
from ratc_runtime.config.lock import Lock
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.atomic import replacing
from ratc_runtime.tasks import make_task
from ratc_runtime.training.memory_rehearsal import noise

#: Largest difference of an output that counts as rounding, relative to its largest value.
ROUNDING = 1e-3
_HELP = "pip install 'ratc[onnx]'"


def write(checkpoint: Path, lock: Lock, output: Path, trust: bool = False) -> tuple[int, float]:
    """Export a checkpoint's model for its own image size and any number of images, and run the file by ONNX Runtime.

    Returns the file's size in bytes, and the largest difference to the model's output over its largest absolute value.
    Raises R551 if the model cannot be exported or the file's output differs, R545 without the packages, R509 or R511 if
    the model fails on images of its lock's size.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RuntimeFinding("R545", "ONNX is not installed", str(error), _HELP) from None
    inference.check_room(lock)
    model = _model(checkpoint, lock, trust)
    task = make_task(lock)
    image, _ = noise(task, lock, 2, torch.device("cpu"))
    if not isinstance(image, torch.Tensor):
        raise RuntimeFinding("R551", "a model of several inputs, or of several sizes, is not exported to ONNX")
    # The comparison uses another number of images than the export, and the published layers.
    other, _ = noise(task, lock, 3, torch.device("cpu"))
    try:
        with torch.no_grad():
            expected = model(other)
            make_real(model, image)
    except Exception as error:  # a checkpoint's lock may give sizes that its model cannot take
        raise inference.failed_outputs(lock, error, torch.device("cpu")) from error
    if not isinstance(expected, torch.Tensor):
        raise RuntimeFinding("R551", f"a model that gives {type(expected).__name__}, not one tensor, is not exported")
    with replacing(output) as work:
        _export(model, image, work)
        session = onnxruntime.InferenceSession(str(work), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"image": other.numpy()})[0])
        apart = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not apart <= ROUNDING:
            note = f"{apart:.2g} of its largest number apart, where rounding makes less than {ROUNDING:g}"
            raise RuntimeFinding("R551", "the ONNX model gives other results", note)
    return output.stat().st_size, apart


def _export(model: nn.Module, image: torch.Tensor, path: Path) -> None:
    try:
        # Its exporter tells of every stage on stdout, and warns of its own deprecations.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (image,),
                dynamo=True,
                input_names=["image"],
                output_names=["output"],
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            )
        assert program is not None
        program.save(str(path))
    except Exception as error:  # its exporter raises various errors
        note = f"{type(error).__name__}: {' '.join(str(error).split()):.500}"
        raise RuntimeFinding("R551", "the model cannot be exported to ONNX", note) from None


def _model(checkpoint: Path, lock: Lock, trust: bool) -> nn.Module:
    """Return the model with its weights, in evaluation mode, with the published attention."""
    plain = lock.replace(model=lock.model.replace(attention_memory="full"))
    return restored(plain, checkpoint, trust).eval()


def make_real(model: nn.Module, image: torch.Tensor) -> int:
    """Make every rotary embedding compute with real numbers, for images (B, C, ...) of this size; return the number of
    embeddings.
    """
    # By name: importing the package for a model that does not use it would cost seconds.
    found = [module for module in model.modules() if type(module).__name__ == "RotarySpatialEmbedding"]
    rotary: list[Any] = [module for module in found if module.rotary_dim]
    angles: dict[int, dict[Any, tuple[torch.Tensor, torch.Tensor]]] = {id(module): {} for module in rotary}

    def note(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if id(module) in looking:
            return
        looking.add(id(module))
        spacing, grid = _size(given, named)
        # With one in the real part of every plane, the result is its cosine and sine.
        heads, dims = module.num_heads, module.dims_per_head
        count = given[0].shape[1]
        ones = torch.zeros(1, count, heads, dims)
        ones[..., 0::2] = 1.0
        turned = module(ones, spacing, grid, flatten=False)[:, :, : module.num_rotary_heads]
        angles[id(module)][spacing, grid] = (turned[..., 0::2].clone(), turned[..., 1::2].clone())
        looking.discard(id(module))

    looking: set[int] = set()
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in rotary]
    model(image)
    for hook in hooks:
        hook.remove()
    for module in rotary:
        module.forward = _Turn(module, angles[id(module)])
    return len(rotary)


def _size(given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    spacing = given[1] if len(given) > 1 else named["spacing"]
    grid = given[2] if len(given) > 2 else named["grid_shape"]
    return tuple(map(float, spacing)), tuple(map(int, grid))


class _Turn:
    """The rotary embedding's forward with real numbers: (a + bi)(cos + i sin)."""

    def __init__(self, module: Any, angles: dict[Any, tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.heads, self.dims, self.rotary = module.num_heads, module.dims_per_head, module.num_rotary_heads
        self.angles = angles

    def __call__(self, x: torch.Tensor, *given: Any, flatten: bool = False, **named: Any) -> torch.Tensor:
        if len(given) > 2:
            flatten = bool(given[2])
        cos, sin = self.angles[_size((x, *given), named)]
        x = x.reshape(x.shape[0], x.shape[1], self.heads, self.dims)
        turned, rest = x[:, :, : self.rotary], x[:, :, self.rotary :]
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        x = torch.cat((turned, rest), dim=2)
        return x.flatten(2) if flatten else x
