"""YAML read into frozen dataclasses, strictly: what is unknown, missing or of another type is R505."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import stat
import types
import typing
from pathlib import Path
from typing import Any, BinaryIO, Literal

import yaml

from ratc_runtime.errors import RuntimeFinding

LOCK_VERSION = 1
# A lock has some hundred lines; anything beyond this is another file under its name.
MAX_LOCK_BYTES = 4 * 2**20


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key given twice instead of taking the last one."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.YAMLError(f"key {key.value!r} is given twice (line {key.start_mark.line + 1})")
            seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def unreadable(message: str, note: str = "") -> RuntimeFinding:
    """Return R505."""
    return RuntimeFinding("R505", message, note, "compile the spec again: ratc compile SPEC")


def load_yaml(path: Path) -> Any:
    """Return the content of a small YAML file, or raise R505 saying why it cannot be read."""
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_LOCK_BYTES + 1)
    except (OSError, ValueError) as error:
        raise unreadable(f"cannot read {path}", getattr(error, "strerror", None) or str(error)) from None
    if len(raw) > MAX_LOCK_BYTES:
        raise unreadable(f"{path} is too large to be read", f"more than {MAX_LOCK_BYTES} bytes")
    try:
        return yaml.load(raw.decode("utf-8"), Loader=_StrictLoader)
    except UnicodeDecodeError:
        raise unreadable(f"{path} is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise unreadable(f"{path} is not valid YAML", reason) from None


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raise OSError for what is none: a device or a pipe may never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(handle, "rb")


def is_plain(value: Any) -> bool:
    """Whether a compiled file can hold it: finite numbers of 64 bits, text, and lists and maps of these."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or (isinstance(value, str) and "\0" not in value)


def _spell(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(_spell(part) for part in typing.get_args(kind))
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def read_as(kind: Any, value: Any, where: str) -> Any:
    """Return `value` as `kind` (a dataclass, a scalar, list[...] or dict[...]), or raise R505 naming `where`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, (int, float, str)) and not is_plain(value):
        raise unreadable(f"the lock's {where} is {_short(value)}, expected a finite number of 64 bits, or text")
    if dataclasses.is_dataclass(kind):
        return read_class(kind, value, where)
    if origin in (types.UnionType, typing.Union):  # the second of a Literal or None
        if value is None and type(None) in arguments:
            return None
        return read_as(next(part for part in arguments if part is not type(None)), value, where)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is list and isinstance(value, list):
        return [read_as(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: read_as(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any and is_plain(value):
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise unreadable(f"the lock's {where} is {_short(value)}, expected {_spell(kind)}")


def _short(value: Any) -> str:
    """The value in at most 80 characters; Python writes no integer of thousands of digits."""
    large = isinstance(value, int) and abs(value) >= 2**256
    return "an integer of many digits" if large else f"{value!r:.80}"


def read_class(kind: Any, value: Any, where: str) -> Any:
    """Return a mapping as the dataclass `kind`; raise R505 for keys that it has not, or that lack."""
    name = where or "top level"
    if not isinstance(value, dict):
        raise unreadable(f"the lock's {name} is no mapping", f"found {type(value).__name__}")
    hints = typing.get_type_hints(kind)
    unknown = [str(key) for key in value if key not in hints]
    optional = {part.name for part in dataclasses.fields(kind) if part.default is not dataclasses.MISSING}
    missing = [key for key in hints if key not in value and key not in optional]
    if unknown or missing:
        said = [f"unknown: {', '.join(unknown)}"] if unknown else []
        said += [f"missing: {', '.join(missing)}"] if missing else []
        raise unreadable(f"the lock's keys at {name} are not those of version {LOCK_VERSION}", "; ".join(said))
    prefix = f"{where}." if where else ""
    return kind(**{key: read_as(hint, value[key], prefix + key) for key, hint in hints.items() if key in value})
