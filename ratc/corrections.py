"""Corrections of a value in the wrong form: the same value, written as its key takes it.

Nothing is guessed from other values: a correction holds the same value, and the schema takes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from typing import Any

import jsonschema_rs

from ratc.units import WALLTIME, walltime_text
from ratc.yaml.write import scalar

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SIDES = re.compile(
    r"[(\[]?\s*([0-9]{1,9})\s*[x*,; ]\s*([0-9]{1,9})(?:\s*[x*,; ]\s*([0-9]{1,9}))?\s*[)\]]?", re.IGNORECASE
)
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_IN_FILE = re.compile(r"([A-Za-z_]\w*(?:/[A-Za-z_]\w*)*)(?:\.py)?[:.]([A-Za-z_]\w*)", re.ASCII)
_TIME = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,3})?) ?(d|days?|h|hours?|hrs?|m|min|mins|minutes?)", re.IGNORECASE)
_SECONDS = {"d": 86_400, "h": 3600, "m": 60}
_TRUE, _FALSE = ("yes", "on", "y"), ("no", "off", "n")


def corrections(value: Any, written: str, schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the value as YAML text for each reading that the schema accepts.

    ``written`` is its text in the file: `0123` is more than the number that it was parsed to.
    """
    valid = jsonschema_rs.Draft202012Validator(schema)
    return tuple(dict.fromkeys(text for item, text in _readings(value, written, schema) if valid.is_valid(item)))


def walltimes(value: Any) -> tuple[str, ...]:
    """Return the walltimes that a number without a unit can mean: in hours, and in minutes."""
    text = str(value).strip().strip("\"'")
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text) or float(text) == 0:
        return ()
    return tuple(walltime_text(round(float(text) * seconds)) for seconds in (3600, 60))


def _readings(value: Any, written: str, schema: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield possible readings of a value, each with its text in YAML."""
    kind = schema.get("type", [])
    kinds, pattern = [kind] if isinstance(kind, str) else kind, schema.get("pattern", "")
    if pattern == WALLTIME:
        times = [*walltimes(value)]
        if match := _TIME.fullmatch(str(value).strip()):
            times.append(walltime_text(round(float(match[1]) * _SECONDS[match[2][0].lower()])))
        yield from ((time, scalar(time)) for time in times)
    elif "string" in kinds and isinstance(value, (int, float)) and not isinstance(value, bool):
        yield written, scalar(written)
    if not isinstance(value, str):
        return
    text = value.strip()
    if "boolean" in kinds:
        yield from (
            (truth, scalar(truth)) for truth, words in ((True, _TRUE), (False, _FALSE)) if text.lower() in words
        )
    if {"integer", "number"} & {*kinds} and len(text) < 30 and _NUMBER.fullmatch(text) and isfinite(float(text)):
        yield (int(text) if text.isdecimal() else float(text)), text
    if "array" in kinds and (match := _SIDES.fullmatch(text)):
        sides = [int(side) for side in match.groups() if side]
        yield sides, scalar(sides)
    if ":" in pattern:
        if _DOTTED.fullmatch(text):
            yield (name := ":".join(text.rsplit(".", 1))), name
        elif match := _IN_FILE.fullmatch(text):
            yield (name := f"{match[1].replace('/', '.')}:{match[2]}"), name
