"""Hands a mapping of inputs to a model as the keyword arguments of its `forward`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn


def accept(model: nn.Module) -> None:
    """Let a model take a mapping of inputs as keyword arguments, if that is how its `forward` takes several.

    So do models of `transformers`, and others whose `forward` needs at least two arguments: one mapping would not do.
    """
    library = sys.modules.get("transformers")  # not imported here: whoever has such a model has imported it
    known = inspect.signature(model.forward).parameters
    needed = [one for one in known.values() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if len(needed) > 1 or (library is not None and isinstance(model, library.PreTrainedModel)):
        # A hook, so that the weights keep their names.
        model.register_forward_pre_hook(partial(_unpacked, frozenset(known)), with_kwargs=True)


def _unpacked(
    known: frozenset[str], _module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], Any]:
    """Return a mapping with names of arguments as keyword arguments."""
    if len(given) == 1 and isinstance(given[0], Mapping) and known & given[0].keys():
        return (), {**given[0], **named}
    return given, named
