"""Hands a mapping of inputs to a model as the keyword arguments of its `forward`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn


def accept(model: nn.Module) -> None:
    """Let a model take a mapping of inputs as keyword arguments, if that is how its `forward` takes several.

    So do models of `transformers`, also inside of a wrapper, and others whose `forward` needs at least two arguments,
    or one by its name: one mapping would not do.
    """
    if isinstance(model, torch.jit.ScriptModule):
        return  # it takes no hook
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    inner = inner.module if isinstance(inner, nn.DataParallel) else inner
    try:
        known = inspect.signature(inner.forward).parameters
    except (TypeError, ValueError):
        return  # its forward is not written in Python
    kinds = inspect.Parameter
    named = {name for name, one in known.items() if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    needed = [known[name] for name in named if known[name].default is kinds.empty]
    several = len(needed) > 1 or any(one.kind is kinds.KEYWORD_ONLY for one in needed)
    takes_any = any(one.kind is kinds.VAR_KEYWORD for one in known.values())
    if several or _has_hugging_face(inner):
        # A hook, so that the weights keep their names.
        alone = needed[0].name if len(needed) == 1 else None
        unpacked = partial(_unpacked, frozenset(named), alone, takes_any)
        model.register_forward_pre_hook(unpacked, with_kwargs=True)


def _has_hugging_face(model: nn.Module) -> bool:
    """Whether a model is one of `transformers`, or holds one."""
    library = sys.modules.get("transformers")  # not imported here: whoever has such a model has imported it
    return library is not None and any(isinstance(module, library.PreTrainedModel) for module in model.modules())


def _unpacked(
    named: frozenset[str],
    alone: str | None,
    takes_any: bool,
    _module: nn.Module,
    given: tuple[Any, ...],
    more: dict[str, Any],
) -> tuple[tuple[Any, ...], Any]:
    """Return a mapping with names of arguments as keyword arguments. It is itself the value of an argument that stands
    alone, or of the only one (`alone`) that is needed and that the mapping does not name.
    """
    if len(given) == 1 and isinstance(given[0], Mapping) and (alone is None or alone in given[0]):
        is_alone = len(named) == 1 and not takes_any and set(given[0]) != named
        if not is_alone and (takes_any or named & given[0].keys()):
            return (), {**given[0], **more}
    return given, more
