"""Activation checkpointing: blocks of a model whose activations are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
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
        block.forward = _recomputed(block, block.forward)


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        norms = [one for one in block.modules() if isinstance(one, _NormBase)]
        return nullcontext(), _keep_running_statistics(
            [one for one in norms if one.training and one.track_running_stats]
        )

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # which takes no contexts
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


@contextmanager
def _keep_running_statistics(norms: Sequence[_NormBase]) -> Iterator[None]:
    """While a block is recomputed, let its norms count no batch: the forward pass has counted it."""
    before = [(one, one.momentum, one.num_batches_tracked, _version(one)) for one in norms]
    for one in norms:
        one.momentum = 0.0
    try:
        yield
    finally:
        for one, momentum, counter, version in before:
            one.momentum = momentum
            # By as many as were counted: recomputing may end before a norm, or call it twice.
            if counter is not None and _version(one) > version:
                counter.sub_(_version(one) - version)


def _version(norm: _NormBase) -> int:
    return 0 if norm.num_batches_tracked is None else norm.num_batches_tracked._version
