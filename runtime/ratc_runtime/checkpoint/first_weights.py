"""The weights that a new run starts from (`training.init_from`): names by patterns, and shapes that must agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ratc_runtime.checkpoint.weights import load_weights
from ratc_runtime.config.sections import InitFrom
from ratc_runtime.errors import RuntimeFinding

#: Names in a message.
_SHOWN = 6


def begin_with(model: nn.Module, asked: InitFrom, path: Path) -> str:
    """Load weights and buffers of `path` into the model, on the CPU; return a line on them.

    Names that match a pattern of `load` and none of `skip` are loaded. Raises the errors of `load_weights`, and R595 if
    a pattern matches nothing, if a shape differs, if a tensor holds NaN, if nothing is left to load, or, with `strict`,
    if the model or the file has a name alone.
    """
    given = load_weights(path, plain=True)
    own = model.state_dict()
    for key, patterns in (("load", asked.load), ("skip", asked.skip)):
        _all_match(f"training.init_from.{key}", patterns, {**own, **given})
    wanted, there = _chosen(own, asked), _chosen(given, asked)
    both = [name for name in wanted if name in there]
    differing = [name for name in both if _kind(own[name]) != _kind(given[name])]
    if differing:
        told = [f"{name}: {_words(given[name])} in the file, {_words(own[name])} in the model" for name in differing]
        raise _unfit(
            path,
            f"{len(differing)} of its tensors have another shape or another kind of numbers than in the model",
            "\n".join(_few(told, "\n")),
            f"leave them out: `skip: [{', '.join(_quoted(name) for name in differing[:_SHOWN])}]`",
        )
    missing, unused = [name for name in wanted if name not in there], [name for name in there if name not in own]
    if not both or (asked.strict and (missing or unused)):
        told = [f"only the model has {_listed(missing)}"] if missing else []
        told += [f"only the file has {_listed(unused)}"] if unused else []
        what, helps = "the model and the file have no name in common", ""
        if both:
            what = "its names differ from those of the model"
            helps = "choose names with `load` and `skip`, or set `strict: false` to leave these out"
        elif own.keys() & given.keys():
            what, helps = "`load` and `skip` leave no name to load", "let `skip` match fewer names than `load`"
        raise _unfit(path, what, "\n".join(told), helps)
    # Infinite values may be meant, as those of an attention mask.
    spoilt = [name for name in both if given[name].is_floating_point() and bool(given[name].isnan().any())]
    if spoilt:
        what = f"{len(spoilt)} of its tensors hold NaN: {_listed(spoilt)}"
        raise _unfit(path, what, "a run that diverged may have saved them", "use an earlier checkpoint")
    model.load_state_dict({name: given[name] for name in both}, strict=False)
    line = f"begins with {len(both)} of {len(own)} tensors of {path}"
    left = [name for name in own if name not in both]
    line += f"; not loaded: {_listed(left)}" if left else ""
    return line + (f"; not in the model: {_listed(unused)}" if unused else "")


def _chosen(names: Collection[str], asked: InitFrom) -> list[str]:
    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return [name for name in names if matches(name, asked.load) and not matches(name, asked.skip)]


def _all_match(key: str, patterns: Sequence[str], names: Mapping[str, Any]) -> None:
    """Raise R595 if a pattern matches no name of the model or of the file."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RuntimeFinding(
                "R595",
                f"{key}: no tensor of the model or of the file matches {pattern!r}",
                f"they are called {_listed(list(names))}",
                "a pattern matches a whole name: 'encoder.*' is for all tensors of the module `encoder`",
            )


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.is_floating_point(), *tensor.shape


def _words(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _quoted(name: str) -> str:
    return f'"{name}"'


def _few(words: Sequence[str], between: str = ", ") -> list[str]:
    more = [f"and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
    return [*words[:_SHOWN], *more]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_few(names))


def _unfit(path: Path, what: str, note: str, help: str) -> RuntimeFinding:
    return RuntimeFinding("R595", f"the run cannot start from {path}: {what}", note, help)
