"""Short descriptions of tensors and norms, for people and as values of a JSON line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

#: Groups of parameters in one block.
_GROUPS = 24


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a batch or an output, of any shape, each with its place in it, for any nesting."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", range(len(value)))
        for key, item in zip(names, value, strict=True):
            yield from tensors(item, f"{name}[{key}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)


def record(tensor: torch.Tensor) -> dict[str, Any]:
    """Return shape, dtype, device, range, mean and 2-norm of a tensor, and its number of values that are not finite.

    Range, mean and norm are those of the finite values; None if there are none.
    """
    found: dict[str, Any] = {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "device": str(tensor.device),
    }
    values = tensor.detach()
    if values.is_complex():
        values = values.abs()
    if not values.is_floating_point():
        values = values.double()
    finite = values[torch.isfinite(values)].double()
    some = finite.numel() > 0
    return {
        **found,
        "min": float(finite.min()) if some else None,
        "max": float(finite.max()) if some else None,
        "mean": float(finite.mean()) if some else None,
        "norm": float(finite.norm()) if some else None,
        "not_finite": values.numel() - finite.numel(),
    }


def sentence(found: Mapping[str, Any]) -> str:
    """Return a result of `record` as one line."""
    words = [f"{found['dtype']} ({', '.join(map(str, found['shape']))}) {found['device']}"]
    if found["min"] is not None:
        words.append(
            f"from {found['min']:.4g} to {found['max']:.4g}, mean {found['mean']:.4g}, norm {found['norm']:.4g}"
        )
    if found["not_finite"]:
        words.append(f"{found['not_finite']} not finite")
    return "; ".join(words)


def is_finite(value: Any) -> bool:
    """Return whether every tensor in a value is finite.

    Tensors are detached: saved ones would be missing if activations are recomputed.
    """
    return all(
        bool(torch.isfinite(tensor.detach()).all())
        for _, tensor in tensors(value)
        if tensor.is_floating_point() or tensor.is_complex()
    )


def depth(names: Iterable[str]) -> int:
    """Return the number of name parts that gives groups of parameters for one screen: up to three."""
    listed = list(names)
    fitting = [parts for parts in (2, 3) if len({group(name, parts) for name in listed}) <= _GROUPS]
    return max(fitting, default=1)


def group(name: str, parts: int) -> str:
    """Return the module of a parameter: the first `parts` parts of the parameter's name, without its last part."""
    modules = name.split(".")[:-1] or [name]
    return ".".join(modules[:parts])


def norms(named: Iterable[tuple[str, torch.Tensor | None]], parts: int, scale: float = 1.0) -> dict[str, float]:
    """Return the 2-norm of the tensors of each group, divided by `scale` (a loss scale), by the group's name.

    Tensors may have any shape. Groups without tensors are left out.
    """
    squares: dict[str, float] = {}
    for name, tensor in named:
        if tensor is not None:
            values = tensor.detach().to(torch.float64)
            place = group(name, parts)
            squares[place] = squares.get(place, 0.0) + float((values * values).sum())
    return {name: square**0.5 / scale for name, square in squares.items()}


def total(norms_of_parts: Mapping[str, float]) -> float:
    """Return the 2-norm of all parts together from the 2-norms of the parts."""
    return float(sum(value * value for value in norms_of_parts.values()) ** 0.5)
