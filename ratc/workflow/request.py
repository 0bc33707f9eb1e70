"""The request to the compiler."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias

from ratc.layers import SHORT_NAMES

#: A path in either form.
AnyPath: TypeAlias = "str | os.PathLike[str]"
#: The largest number of samples of an epoch.
MAX_SAMPLES = 10**12
#: The largest number of samples per second of a loader process.
MAX_RATE = 1e9


def as_path(name: str, value: Any) -> str:
    """Return a path as a string. Raises TypeError, with the argument's name, if it is not a str or os.PathLike."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    return str(of_type(name, path, str, "a path: str or os.PathLike"))


def of_type(name: str, value: Any, kind: type, words: str = "") -> Any:
    """Return a value of a type. Raises TypeError, with the argument's name, for any other value."""
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise TypeError(f"`{name}` is not {words or kind.__name__} but {type(value).__name__}: {value!r:.80}")
    return value


def strings(name: str, values: Any) -> tuple[str, ...]:
    """Return several strings as a tuple. Raises TypeError, with the argument's name, for a single one, too."""
    words = "a list or tuple of strings"
    if isinstance(values, (str, bytes, Mapping)):
        raise TypeError(f"`{name}` is not {words} but {type(values).__name__}: {values!r:.80}")
    found = enumerate(of_type(name, values, Iterable, words))
    return tuple(of_type(f"{name}[{place}]", value, str) for place, value in found)


def _mapping(name: str, given: Any) -> None:
    words = "a mapping from strings to strings"
    for key, value in of_type(name, given, Mapping, words).items():
        of_type(name, key, str, words)
        of_type(f"{name}[{key!r}]", value, str)


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """A spec, and the layers over it.

    ``spec`` is the path of the YAML file; if ``text`` is given, that is the spec and the path only says where it would
    lie. ``target`` is ``local``, ``slurm`` or ``lsf``; ``facts`` the path of a file of hardware facts, without which
    this machine's are taken. ``sets`` are assignments ``path=value``, ``short`` the values of short options by their
    name (``batch-size``). Without ``predict`` no model is traced. ``output`` is the folder of the artifacts, by default
    ``compiled/EXPERIMENT/TARGET`` beside the spec. Those of ``variables`` that begin with ``RAT_`` lie over the spec.
    ``samples`` are those of an epoch, and ``loader_rate`` the samples per second of a loader process, for the predicted
    times only.

    A path may be a str or an os.PathLike. Raises TypeError for a value of another type, and ValueError for a short
    option that does not exist, for ``samples`` or ``loader_rate`` out of range and for a null character in ``output``.
    """

    spec: str
    target: str = "local"
    facts: str | None = None
    sets: tuple[str, ...] = ()
    short: Mapping[str, str] = field(default_factory=dict)
    predict: bool = True
    output: str | None = None
    text: bytes | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    samples: int | None = None
    loader_rate: float | None = None

    def __post_init__(self) -> None:
        """Check the types, and keep paths as strings and assignments as a tuple."""
        kept: dict[str, Any] = {"spec": as_path("spec", self.spec), "sets": strings("sets", self.sets)}
        for name in ("facts", "output"):
            value = getattr(self, name)
            kept[name] = None if value is None else as_path(name, value)
        for name, value in kept.items():
            object.__setattr__(self, name, value)
        of_type("target", self.target, str)
        of_type("predict", self.predict, bool)
        _mapping("short", self.short)
        _mapping("variables", self.variables)
        if self.text is not None:
            of_type("text", self.text, bytes)
        unknown = [name for name in self.short if name not in SHORT_NAMES]
        if unknown:
            raise ValueError(f"`short` has no option `{unknown[0]}`; it has {', '.join(SHORT_NAMES)}")
        if self.samples is not None and not 1 <= of_type("samples", self.samples, int) <= MAX_SAMPLES:
            raise ValueError(f"`samples` is not between 1 and {MAX_SAMPLES}")
        rate = self.loader_rate
        if rate is not None and not 0 < of_type("loader_rate", rate, Real, "a number") <= MAX_RATE:
            raise ValueError(f"`loader_rate` is not above 0 and at most {MAX_RATE:g}")
        if self.output is not None and "\0" in self.output:
            raise ValueError("`output` has a null character")

    @property
    def folder(self) -> str:
        """The spec's folder, as it was written."""
        return os.path.dirname(self.spec) or "."
