"""Nested tensors in lists and mappings: outputs of models, inputs of losses, and items of data sets.

A list of mappings holds one item per sample (boxes differ in number). Any other list, tuple or mapping holds tensors
with all samples in their first dimension (levels of a pyramid, heads of a model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def apply(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Return `value` with `function` applied to every tensor, of any shape. Other values stay unchanged."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: apply(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [apply(function, item) for item in value]
    return value


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in `value`, of any shape, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(item)


def to_device(value: Any, device: torch.device) -> Any:
    """Return `value` on the device. Copies from pinned memory are asynchronous."""
    return apply(lambda tensor: tensor.to(device, non_blocking=True), value)


def to_float(value: Any) -> Any:
    """Return `value` with its floating-point tensors in float32."""
    return apply(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, value)


def select(value: Any, rows: list[int]) -> Any:
    """Return the samples of a batch with the indices `rows`."""
    if isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value):
        return [value[row] for row in rows]
    if isinstance(value, Mapping):
        return {key: select(item, rows) for key, item in value.items()}
    return apply(lambda tensor: tensor[rows], value)


def hold_nan(value: Any) -> bool:
    """Return whether any of the tensors holds NaN."""
    return any(bool(tensor.isnan().any()) for tensor in tensors(value) if tensor.is_floating_point())
