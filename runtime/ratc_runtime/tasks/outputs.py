"""A model's output in the form that the task needs. A user's model may return another form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ratc_runtime.errors import RuntimeFinding


def tensor_of(output: Any, task: str = "segmentation") -> torch.Tensor:
    """Return an output, of any shape, that must be one tensor of logits. Raises R574 if it is not; for a mapping with
    its keys.
    """
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        keys = [str(key) for key in output]
        first = next((key for key in ("out", "logits") if key in keys), next(iter(keys), "out"))
        raise RuntimeFinding(
            "R574",
            f"the model returns a mapping with {_listed(keys)}, and {task} needs one tensor of logits",
            "models of torchvision's `segmentation` return {'out': …, 'aux': …}" if task == "segmentation" else "",
            f"name the key: `model: {{output: {first}}}`",
        )
    what = f"a {type(output).__name__}" + (f" of {len(output)}" if isinstance(output, (list, tuple)) else "")
    raise RuntimeFinding(
        "R574",
        f"the model returns {what}, and {task} needs one tensor of logits",
        help="name a callable of your own as the model, which returns a module whose forward gives the logits alone",
    )


def entry_of(output: Any, key: str) -> Any:
    """Return the entry of a mapping that a model returned. Raises R574 if the key is missing."""
    if isinstance(output, Mapping) and key in output:
        return output[key]
    raise RuntimeFinding(
        "R574",
        f"the model returns {_form(output)}, and the lock's model.output is `{key}`",
        help="name a key that is there, or remove `model.output`, and compile again",
    )


def mapping_with(output: Any, keys: Sequence[str]) -> Mapping[str, Any]:
    """Return an output that must be a mapping with these keys. Raises R574, with its type, if it is not."""
    if isinstance(output, Mapping) and all(key in output for key in keys):
        return output
    raise RuntimeFinding(
        "R574",
        f"the model returns {_form(output)}, and detection needs a mapping with {_listed(keys)}",
        help="`logits` (B, L, Q, classes) and `boxes` (B, L, Q, 4): see docs/reference/tasks.md, Detection",
    )


def _form(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with {_listed([str(key) for key in output])}"
    return f"a {type(output).__name__}"


def _listed(keys: Sequence[str]) -> str:
    if not keys:
        return "no key"
    shown = ", ".join(f"`{key:.40}`" for key in keys[:8])
    return f"the key{'s' if len(keys) > 1 else ''} {shown}{', …' if len(keys) > 8 else ''}"
