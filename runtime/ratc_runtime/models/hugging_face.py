"""Models of Hugging Face's `transformers`, named by their class or its config's, and built from the config's values."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from ratc_runtime.errors import RuntimeFinding

#: Values of a config, and of the mappings in it, that may load code or weights from elsewhere otherwise.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "attn_implementation": ("eager", "sdpa"),
    "use_pretrained_backbone": (False, None),
    "pretrained": (False, None),
    "checkpoint_path": ("", None),
}
#: How timm's names begin if they stand for files elsewhere.
_ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:", "file:")
#: Values that a config turns into others, by the value that tells whether it does.
_TURNED = {"rope_theta": "rope_parameters", "rope_scaling": "rope_parameters"}
#: The classes that make the model of a config, and the names of their mappings by config: the first that has it does.
_MAKERS = {
    "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "AutoModelForSpeechSeq2Seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING",
}


def is_config(kind: Any) -> bool:
    """Return whether something is a config class of `transformers`."""
    library = sys.modules.get("transformers")  # not imported here: whoever has such a class has imported it
    return library is not None and inspect.isclass(kind) and issubclass(kind, library.PretrainedConfig)


def maker_of(name: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what makes a model of its arguments: ``target`` itself, or for the library's classes a function of the
    config's values.

    A config class stands for the model that its architecture is trained with from the start: GPT2Config for
    GPT2LMHeadModel, BertConfig for BertForPreTraining, LlamaConfig for LlamaForCausalLM; without such a model, for the
    bare one. The weights are random.
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


def _untrained(name: str, config_class: Any, model_class: Any, /, **values: Any) -> nn.Module:
    """Return a model with random weights.

    Raises R237 if the config has no such value, or may not have it, and R509 if the model needs a file.
    """
    _check(f"model {name}", config_class, values)
    config = config_class(**values)
    _forget(config, values)
    try:
        with _offline():
            model: nn.Module = model_class(config) if model_class else _usual(config)
    except OSError as error:
        raise RuntimeFinding(
            "R509",
            f"model {name} needs a file for these values, and nothing is loaded here",
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "give the values of its parts, or name a function of your own that returns the model",
        ) from error
    return model


def _check(place: str, config_class: Any, values: Mapping[str, Any]) -> None:
    """Raise R237 for a value that a config, or one of the configs in it, does not have or may not have.

    The library would keep a misspelt value without a word.
    """
    known = _default(config_class)
    for key, value in values.items():
        if key.startswith("_") or not _has(config_class, known, key):
            public = [each for each in vars(known) if not each.startswith("_")]
            close = difflib.get_close_matches(key, public, 1)
            hint = f"did you mean `{close[0]}`?" if close else f"see the documentation of {config_class.__name__}"
            raise RuntimeFinding("R237", f"{place}: {config_class.__name__} has no `{key}`", help=hint)
        if key in config_class.sub_configs and isinstance(value, Mapping):
            _check(f"{place}, {key}", _kind(place, known, key, value), value)
        else:
            _check_loads(place, key, value)


def _default(config_class: Any) -> Any:
    """Return a config without own values; of one that needs some, what every config has."""
    try:
        return config_class()
    except Exception:  # a config of others asks for them, each in its own way
        from transformers import PretrainedConfig

        known = PretrainedConfig()
        for key in config_class.sub_configs:
            setattr(known, key, None)
        return known


def _has(config_class: Any, known: Any, key: str) -> bool:
    if key in _CHOICES or (key == "decoder_start_token_id" and known.is_encoder_decoder):
        return True
    parameter = inspect.signature(config_class).parameters.get(key)
    if parameter is not None and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return True  # also one that an instance tells for each layer only
    return hasattr(known, _TURNED.get(key, key)) and not callable(getattr(known, key, None))


def _kind(place: str, known: Any, key: str, value: Mapping[str, Any]) -> Any:
    """Return the class of a config in a config. Raises R237 if it is open."""
    from transformers import CONFIG_MAPPING, AutoConfig

    kind, default = type(known).sub_configs.get(key, AutoConfig), type(getattr(known, key, None))
    named = value.get("model_type")
    if kind is not AutoConfig:
        return kind
    if named is None and is_config(default):
        return default
    if not isinstance(named, str) or named not in CONFIG_MAPPING:
        raise RuntimeFinding(
            "R237", f"{place}, {key}: the `model_type` is {named!r:.80}", help="name an architecture, such as `bert`"
        )
    return CONFIG_MAPPING[named]


def _check_loads(place: str, key: str, value: Any) -> None:
    """Raise R237 for a value, at any depth, by which code or weights would be loaded."""
    if key in _CHOICES and value not in _CHOICES[key]:
        allowed = " or ".join(map(repr, _CHOICES[key]))
        raise RuntimeFinding("R237", f"{place}: `{key}` is {value!r:.80}", help=f"write {allowed}, or remove it")
    if isinstance(value, str) and value.startswith(_ELSEWHERE):
        raise RuntimeFinding(
            "R237", f"{place}: `{key}` is {value!r:.80}, which loads a file", help="name an architecture"
        )
    if isinstance(value, Mapping):
        for inner, each in value.items():
            _check_loads(place, str(inner), each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_loads(place, key, each)


def _forget(config: Any, values: Mapping[str, Any]) -> None:
    """Keep no keys and values of earlier tokens, which only generation needs, unless the spec asks for them."""
    if hasattr(config, "use_cache") and "use_cache" not in values:
        config.use_cache = False
    for key in config.sub_configs:
        given, inner = values.get(key), getattr(config, key, None)
        if is_config(type(inner)):
            _forget(inner, given if isinstance(given, Mapping) else {})


@contextmanager
def _offline() -> Iterator[None]:
    """Let the library ask its hub for nothing meanwhile."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _usual(config: Any) -> nn.Module:
    import transformers

    fitting = (name for name, mapping in _MAKERS.items() if type(config) in getattr(transformers, mapping))
    kind = getattr(transformers, next(fitting, "AutoModel"))
    model: nn.Module = kind.from_config(config)
    return model
