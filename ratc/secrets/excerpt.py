"""A line of a source as people may see it: secrets are starred out, however YAML quotes them.

A text that is not YAML, for example a script, is redacted by :mod:`ratc.secrets.redact`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import yaml

from ratc.diagnostics import Source
from ratc.secrets.names import names_secret
from ratc.secrets.redact import has_secret, option_of, redact, starred

_DEEPEST = 100
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def line(source: Source, number: int) -> str:
    """The text of line ``number`` (from 1) with secrets starred out, column for column; empty beyond the end."""
    return Source(source.name, _shown(source)).line(number)


def _shown(source: Source) -> str:
    if source.is_file:
        return whole(source.text)
    name, equals, value = source.text.partition("=")
    if names_secret(source.name):  # the value of a variable of the environment
        return "*" * len(source.text)
    if equals and re.fullmatch(r"(?:--[\w-]+ )?[\w.-]+", name):  # an assignment on the command line
        return f"{name}={'*' * len(value) if names_secret(name) else whole(value)}"
    return whole(source.text)


@lru_cache(maxsize=8)
def whole(text: str) -> str:
    """A text of a file with secrets starred out, column for column."""
    return redact(starred(text, _values(text)))


def _values(text: str) -> Iterator[tuple[int, int]]:
    """Yield the character ranges of secret keys' values in a YAML text, and of values that hide a secret by escapes.

    A deeply nested value counts as one secret up to the end of the text.
    """
    anchors: dict[str, tuple[int, int]] = {}
    stack: list[_Level] = []
    for event in _events(text):
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)) and stack:
            stack.pop()
        level = stack[-1] if stack else None
        is_value = level is not None and level.is_secret
        if isinstance(event, yaml.AliasEvent):
            if is_value and event.anchor in anchors:
                yield anchors[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            start, end = event.start_mark, event.end_mark
            assert start is not None
            assert end is not None
            span = start.index, end.index
            if event.anchor:
                anchors[event.anchor] = span
            is_key = level is not None and level.awaits_key
            if (is_value and not is_key) or (has_secret(event.value) and not has_secret(text[slice(*span)])):
                yield span
            if level is not None and (is_key or not level.is_mapping):
                level.key = event.value
                level.awaits_key = False
                continue
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            if len(stack) > _DEEPEST:  # libyaml takes the square of the depth, and no file that ratc reads is so deep
                assert event.start_mark is not None
                yield event.start_mark.index, len(text)
                return
            stack.append(_Level(isinstance(event, yaml.MappingStartEvent), is_value))
            continue
        if level is not None:
            level.key, level.awaits_key = "", level.is_mapping


class _Level:
    """A mapping or a list that is being read."""

    def __init__(self, is_mapping: bool, inherits: bool) -> None:
        self.is_mapping = self.awaits_key = is_mapping
        self.inherits = inherits
        #: Of a mapping the key of the next value, of a list the entry before.
        self.key = ""

    @property
    def is_secret(self) -> bool:
        """Whether the next value, if one follows, belongs to a secret."""
        names = names_secret if self.is_mapping else option_of
        return self.inherits or (not self.awaits_key and bool(names(self.key)))


def _events(text: str) -> Iterator[Any]:
    """Yield the events of a YAML text, up to the first syntax error."""
    loader = None
    try:
        loader = _Loader(text.encode("utf-8", "replace").decode())  # a name of a file can hold what UTF-8 cannot
        while loader.check_event():
            yield loader.get_event()
    except yaml.YAMLError:
        return
    finally:
        if loader is not None:
            loader.dispose()
