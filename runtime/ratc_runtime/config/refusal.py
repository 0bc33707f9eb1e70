"""R505: the message for an unusable lock. It lists several errors at once, each with the path of its key."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ratc_runtime.errors import RuntimeFinding

LOCK_VERSION = 1
#: Text that no file and no argument of a program can hold: NUL, and halves of characters.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
#: Errors in one message at most.
_MOST = 20
_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a mapping",
}
_LIMITS = {
    "gt": "more than",
    "ge": "at least",
    "lt": "less than",
    "le": "at most",
    "min_length": "at least",
    "max_length": "at most",
}


class Wrong(NamedTuple):
    """One error: the path of its key, its description, and an additional fact."""

    at: str
    words: str
    note: str = ""


def unreadable(
    message: str, note: str = "", instead: str = "compile the spec again: ratc compile SPEC"
) -> RuntimeFinding:
    """Return R505; ``instead`` is the action that helps."""
    return RuntimeFinding("R505", message, note, instead)


def refuse_all(wrong: Iterable[Wrong]) -> RuntimeFinding:
    """Return R505 for one or more errors. An error that was found twice is listed once."""
    known = list(dict.fromkeys(wrong))
    if len(known) == 1:
        return unreadable(f"the lock's {known[0].at} {known[0].words}", known[0].note)
    lines = [f"{one.at} {one.words}" + (f": {one.note}" if one.note else "") for one in known[:_MOST]]
    if len(known) > _MOST:
        lines.append(f"and {len(known) - _MOST} more")
    return unreadable(f"the lock has {len(known)} errors", "\n".join(lines))


def not_plain(content: Any) -> Iterator[Wrong]:
    """Yield anything that no compiled file holds: values other than finite 64-bit numbers, text, lists and maps."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while waiting:
        at, value = waiting.pop()
        if isinstance(value, dict):
            yield from (_wrong_key(at, key) for key in value if not (isinstance(key, str) and _is_scalar(key)))
            waiting += [((*at, key), item) for key, item in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [((*at, index), item) for index, item in reversed(list(enumerate(value)))]
        elif not _is_scalar(value):
            yield Wrong(
                _path(at), f"is {_short(value)}, expected text, or a number that is finite and fits into 64 bits"
            )


def _is_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or (isinstance(value, str) and not _NO_TEXT.search(value))


def wrong_values(errors: Sequence[Any]) -> Iterator[Wrong]:
    """Yield pydantic's errors in order. The unknown and missing keys of a section are one error."""
    keys: dict[tuple[Any, ...], tuple[list[str], list[str]]] = {}
    for error in errors:
        if error["type"] in ("extra_forbidden", "invalid_key", "missing"):
            unknown, missing = keys.setdefault(error["loc"][:-1], ([], []))
            (missing if error["type"] == "missing" else unknown).append(str(error["loc"][-1]))
    for at, (unknown, missing) in keys.items():
        said = [f"unknown: {', '.join(unknown)}"] if unknown else []
        said += [f"missing: {', '.join(missing)}"] if missing else []
        yield Wrong(f"keys at {_path(at)}", f"are not those of version {LOCK_VERSION}", "; ".join(said))
    for error in errors:
        if error["type"] not in ("extra_forbidden", "invalid_key", "missing"):
            yield _wrong_value(error["type"], error["loc"], error["input"], error.get("ctx", {}))


def _wrong_value(kind: str, at: tuple[Any, ...], value: Any, context: dict[str, Any]) -> Wrong:
    if kind in ("model_type", "model_attributes_type"):
        return Wrong(_path(at), "is not a mapping", f"found {type(value).__name__}")
    if at[-1] == "[key]":
        return _wrong_key(at[:-2], at[-2])
    return Wrong(_path(at), f"is {_short(value)}, expected {_expected(kind, context)}")


def _wrong_key(at: tuple[Any, ...], key: Any) -> Wrong:
    return Wrong(_path(at), f"has the key {_short(key)}, expected text")


def _expected(kind: str, context: dict[str, Any]) -> str:
    if kind == "literal_error":
        return str(context["expected"])
    for key, words in _LIMITS.items():
        if key in context:
            return f"{words} {context[key]:g}" + (" values" if key.endswith("_length") else "")
    return _KINDS.get(kind.partition("_")[0], kind)


def _path(at: tuple[Any, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at)
    return text.removeprefix(".") or "top level"


def _short(value: Any) -> str:
    """Return the value in at most 80 characters. Python refuses to print integers of thousands of digits."""
    large = isinstance(value, int) and abs(value) >= 2**256
    return "an integer of many digits" if large else f"{value!r:.80}"
