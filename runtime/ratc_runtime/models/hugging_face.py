"""Models of Hugging Face's `transformers`, named by their class or its config's, and built from the config's values."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ratc_runtime.errors import RuntimeFinding

#: Values of a config that may load code or weights from the network otherwise.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "attn_implementation": ("eager", "sdpa"),
    "use_pretrained_backbone": (False, None),
}


def is_config(kind: Any) -> bool:
    """Return whether something is a config class of `transformers`."""
    library = sys.modules.get("transformers")  # not imported here: whoever has such a class has imported it
    return library is not None and inspect.isclass(kind) and issubclass(kind, library.PretrainedConfig)


def maker_of(name: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what makes a model of its arguments: ``target`` itself, or for the library's classes a function of the
    config's values.

    A config class stands for the model that its architecture is trained with from the start: GPT2Config for
    GPT2LMHeadModel, BertConfig for BertForPreTraining; without such a model, for the bare one. The weights are random.
    A mapping of inputs reaches the model's `forward` as keyword arguments.
    """
    if is_config(target):
        return partial(_untrained, name, target, None)
    library = sys.modules.get("transformers")
    if library is None or not inspect.isclass(target) or not issubclass(target, library.PreTrainedModel):
        return target
    config_class = getattr(target, "config_class", None)
    takes_config = "config" in inspect.signature(target).parameters and "config" not in arguments
    if not takes_config or not is_config(config_class):
        return target  # a class of the user's own, with arguments of its own
    return partial(_untrained, name, config_class, target)


def _untrained(name: str, config_class: Any, model_class: Any, **values: Any) -> nn.Module:
    """Return a model with random weights. Raises R509 if the config has no such value, or may not have it."""
    known = config_class()
    public = [key for key in vars(known) if not key.startswith("_")]
    for key in values:
        # The library would keep a misspelt value without a word.
        is_value = hasattr(known, key) and not callable(getattr(known, key))
        if key.startswith("_") or not (is_value or key in _CHOICES):
            close = difflib.get_close_matches(key, public, 1)
            hint = f"did you mean `{close[0]}`?" if close else f"see the documentation of {config_class.__name__}"
            raise RuntimeFinding("R509", f"model {name}: {config_class.__name__} has no `{key}`", help=hint)
    for key, allowed in _CHOICES.items():
        if key in values and values[key] not in allowed:
            raise RuntimeFinding(
                "R509", f"model {name}: `{key}` is {values[key]!r:.80}", help=f"write {' or '.join(map(str, allowed))}"
            )
    if hasattr(known, "use_cache"):
        values.setdefault("use_cache", False)  # keys and values of earlier tokens, which only generation needs
    config = config_class(**values)
    model: nn.Module = model_class(config) if model_class else _usual(config)
    # A hook, so that the weights keep their names.
    model.register_forward_pre_hook(_unpacked, with_kwargs=True)
    return model


def _usual(config: Any) -> nn.Module:
    from transformers import MODEL_FOR_PRETRAINING_MAPPING, AutoModel, AutoModelForPreTraining

    kind = AutoModelForPreTraining if type(config) in MODEL_FOR_PRETRAINING_MAPPING else AutoModel
    model: nn.Module = kind.from_config(config)
    return model


def _unpacked(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """Return a mapping of inputs as keyword arguments."""
    if len(given) == 1 and isinstance(given[0], Mapping):
        return (), {**given[0], **named}
    return given, named
