"""Activation checkpointing: blocks of a model whose activations are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ratc_runtime.errors import RuntimeFinding


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a model by name, each once: the elements of a ModuleList or Sequential inside no other."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def add(name: str, module: nn.Module) -> None:
        for key, child in module.named_children():
            path = f"{name}.{key}" if name else key
            if not isinstance(module, (nn.ModuleList, nn.Sequential)):
                add(path, child)
            elif id(child) not in seen:
                seen.add(id(child))
                found[path] = child

    add("", model)
    return found


def recompute(model: nn.Module, which: bool | Sequence[str]) -> None:
    """Recompute every block in the backward pass, or those of some names. Raises R373 for names that no block has."""
    known = blocks(model)
    names = list(known) if which is True else list(which or ())
    missing = [name for name in names if name not in known]
    if missing:
        raise RuntimeFinding(
            "R373",
            f"activation_checkpointing names blocks that the model does not have: {', '.join(missing)[:200]}",
            f"it has {', '.join(known)[:300] or 'none'}",
            "compile the spec again",
        )
    for name in names:
        block = known[name]
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
