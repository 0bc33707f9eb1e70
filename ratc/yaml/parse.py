"""YAML text -> :class:`Document`: plain data in which every node keeps its place in the source.

The text is read as YAML 1.2 (core schema): ``1e-4`` is a number and ``on`` a string. libyaml finds the tokens; values,
merge keys and limits are decided here, because a YAML 1.1 loader would decide them differently.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import yaml

from ratc.diagnostics import Diagnostic, Source, Span
from ratc.yaml import lines

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 50_000

Scalar: TypeAlias = str | int | float | bool | None

_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"(?:~|null|Null|NULL)?")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
#: Characters that YAML 1.2 does not allow in a file: they must be escaped.
_UNREADABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: Markers of git in a file that it could not merge.
_CONFLICT = re.compile(r"^(?:<{7}|>{7})(?: .*)?$|^(?:={7}|\|{7}(?: .*)?)$", re.MULTILINE)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place: a scalar, a ``dict[str, Node]`` or a ``list[Node]``.

    ``key_span`` is the place of the node's key; ``layer`` names the layer that the node came from.
    """

    value: Scalar | dict[str, Node] | list[Node]
    span: Span
    key_span: Span | None = None
    layer: str = "spec"

    def data(self) -> Any:
        """The bare value, without places."""
        if isinstance(self.value, dict):
            return {key: child.data() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.data() for child in self.value]
        return self.value

    def find(self, path: tuple[str | int, ...]) -> Node | None:
        """The node under a path of keys and indices, or None."""
        node = self
        for step in path:
            # The schema's validator names a key of digits as a number.
            if isinstance(node.value, dict) and str(step) in node.value:
                node = node.value[str(step)]
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
            else:
                return None
        return node

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Node]]:
        """Every node that is not a non-empty mapping, under its dotted path."""
        if isinstance(self.value, dict) and self.value:
            for key, child in self.value.items():
                yield from child.leaves(f"{prefix}.{key}" if prefix else key)
        elif prefix:
            yield prefix, self


@dataclass(frozen=True, slots=True)
class Document:
    """The root mapping of one file, or of several laid over one another."""

    root: Node


class _Refused(Exception):
    def __init__(self, diagnostic: Diagnostic) -> None:
        self.diagnostic = diagnostic


def parse(name: str, raw: bytes, layer: str = "spec") -> tuple[Document | None, tuple[Diagnostic, ...]]:
    """Read the bytes of one YAML file. Its root must be a mapping.

    ``name`` is the file's name in diagnostics. Codes: R002-R009.
    """
    source = Source(name, "")
    if len(raw) > MAX_BYTES:
        size = f"{len(raw) / 2**20:.1f} MiB"
        return None, (Diagnostic("R006", f"`{name}` is too large for a spec: {size}, the limit is 1 MiB"),)
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        bad, before = error.object[error.start], error.object[: error.start].decode("utf-8")
        span = _at(name, error.object.decode("utf-8", errors="replace"), len(before))
        message = f"byte 0x{bad:02x} is not UTF-8"
        return None, (Diagnostic("R002", message, span, helps=("save the file as UTF-8",)),)
    unreadable = _UNREADABLE.search(text)
    if unreadable:
        message = f"the character U+{ord(unreadable[0]):04X} is not allowed in YAML"
        return None, (Diagnostic("R003", message, _at(name, text, unreadable.start()), helps=("remove it",)),)
    source = Source(name, lines.unified(text))
    conflict = _conflict(source)
    if conflict:
        return None, (conflict,)
    composer = _Composer(source, layer, text)
    try:
        root = composer.document()
    except _Refused as refused:
        return None, (*composer.found, refused.diagnostic)
    except yaml.YAMLError as error:
        return None, (*composer.found, _syntax_error(source, error))
    return (None if composer.found else Document(root)), tuple(composer.found)


def _conflict(source: Source) -> Diagnostic | None:
    """Return a finding for an unfinished merge: both kinds of outer conflict markers are in the text. Code: R009."""
    marks = list(_CONFLICT.finditer(source.text))
    if not {"<", ">"} <= {mark[0][0] for mark in marks}:
        return None
    first, *others = ((source.text.count("\n", 0, mark.start()) + 1, mark[0]) for mark in marks)
    span = Span(source, first[0], 1, first[0], len(first[1]) + 1)
    note = f"there are more markers in the lines {', '.join(str(line) for line, _ in others[:8])}"
    helps = ("keep one side and delete the markers; if ratc wrote the file, compile the spec again instead",)
    return Diagnostic("R009", f"a merge conflict was left in `{source.name}`", span, (note,), helps)


def parse_value(source: Source, text: str, column: int, layer: str) -> Node | str:
    """Parse a value of a command line or the environment as YAML; returns the reason as text if it is invalid.

    ``column`` is the column of the value's start in the source, from 1.
    """
    try:
        composer = _Composer(source, layer, text, column=column - 1)
        root = composer.document(mapping=False)
    except _Refused as refused:
        return refused.diagnostic.message
    except yaml.YAMLError:
        return "not valid YAML"
    return composer.found[0].message if composer.found else root


class _Composer:
    """Builds nodes from libyaml's events and collects the findings on them."""

    def __init__(self, source: Source, layer: str, text: str, column: int = 0) -> None:
        self.source, self.layer, self.column = source, layer, column
        self.found: list[Diagnostic] = []
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._count = 0
        self._events: Any = _Loader(text)

    def document(self, mapping: bool = True) -> Node:
        self._next()  # stream start
        if self._events.check_event(yaml.StreamEndEvent):
            whole = Span(self.source, 1, 1, 1, 1)
            if not mapping:
                return Node(None, whole, layer=self.layer)
            self._refuse("R004", "the file is empty", whole, self._start_over)
        self._next()  # document start
        root = self._node(depth=0)
        self._next()  # document end
        if not self._events.check_event(yaml.StreamEndEvent):
            self._refuse("R004", "the file holds more than one YAML document", self._span(self._next()))
        if mapping and not isinstance(root.value, dict):
            kind = "a list" if isinstance(root.value, list) else "a single value"
            hint = () if root.value is not None else (self._start_over,)
            first = replace(root.span, end_line=root.span.line, end_column=root.span.column + 1)
            self._refuse("R004", f"the file holds {kind} where a mapping of keys is expected", first, *hint)
        return root

    @property
    def _start_over(self) -> str:
        """A help on making a file of that kind."""
        lock = self.source.name.endswith("lock.yaml")
        return (
            "compile the spec again"
            if lock
            else "start a spec from `ratc init --task segmentation`, and facts from `ratc probe`"
        )

    def _next(self) -> Any:
        return self._events.get_event()

    def _span(self, event: Any) -> Span:
        start, end = event.start_mark, event.end_mark
        shift, end_shift = (self.column if mark.line == 0 else 0 for mark in (start, end))
        return Span(self.source, start.line + 1, start.column + 1 + shift, end.line + 1, end.column + 1 + end_shift)

    def _refuse(self, code: str, message: str, span: Span, *helps: str) -> None:
        raise _Refused(Diagnostic(code, message, span, helps=helps))

    def _node(self, depth: int) -> Node:
        event = self._next()
        span = self._span(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), span)
        self._grow(1, span)
        if depth > MAX_DEPTH:
            self._refuse("R006", f"values are nested more than {MAX_DEPTH} deep", span)
        before = self._count
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._scalar(event, span), span, layer=self.layer)
        else:
            if event.tag not in (None, "!", f"{_TAG}map", f"{_TAG}seq"):
                self._refuse("R007", f"the tag `{_short(event.tag)}` is not allowed: a spec is plain data", span)
            build = self._mapping if isinstance(event, yaml.MappingStartEvent) else self._sequence
            node = build(span, depth)
        if event.anchor:
            self._anchors[event.anchor] = (node, self._count - before + 1)
        return node

    def _grow(self, by: int, span: Span) -> None:
        self._count += by
        if self._count > MAX_NODES:
            self._refuse("R006", f"the file expands to more than {MAX_NODES} values", span)

    def _alias(self, anchor: str, span: Span) -> Node:
        if anchor not in self._anchors:
            self._refuse("R003", f"`*{anchor}` refers to an anchor that is not defined above it", span)
        node, size = self._anchors[anchor]
        self._grow(size, span)
        return node

    def _sequence(self, start: Span, depth: int) -> Node:
        items = []
        while not self._events.check_event(yaml.SequenceEndEvent):
            items.append(self._node(depth + 1))
        end = self._span(self._next())
        return Node(items, _join(start, end), layer=self.layer)

    def _mapping(self, start: Span, depth: int) -> Node:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        while not self._events.check_event(yaml.MappingEndEvent):
            event = self._next()
            span = self._span(event)
            if not isinstance(event, yaml.ScalarEvent):
                self._refuse("R003", "a key must be a plain word", span)
            key, is_merge = self._text(event.value, span), event.value == "<<" and event.implicit[0]
            child = self._node(depth + 1)
            if is_merge:
                self._merge(merged, child, span)
            elif key in own:
                first = own[key].key_span
                where = f"first given at {first.place}" if first else ""
                self.found.append(
                    Diagnostic("R005", f"the key `{key}` is given twice", span, (where,), ("keep one of them",))
                )
            else:
                own[key] = replace(child, key_span=span)
        end = self._span(self._next())
        for key, child in merged.items():
            own.setdefault(key, child)
        return Node(own, _join(start, end), layer=self.layer)

    def _merge(self, merged: dict[str, Node], child: Node, span: Span) -> None:
        for part in child.value if isinstance(child.value, list) else [child]:
            if not isinstance(part.value, dict):
                self._refuse("R003", "`<<` merges mappings only", span)
                return
            for key, value in part.value.items():
                merged.setdefault(key, value)

    def _scalar(self, event: Any, span: Span) -> Scalar:
        text, tag = event.value, event.tag
        if tag not in (None, "!") and tag not in {_TAG + kind for kind in ("str", "int", "float", "bool", "null")}:
            self._refuse("R007", f"the tag `{_short(tag)}` is not allowed: a spec is plain data", span)
        if tag == _TAG + "str" or (tag is None and not event.implicit[0]) or tag == "!":
            return self._text(text, span)
        return self._plain(text, span)

    def _text(self, text: str, span: Span) -> str:
        if "\0" in text:  # neither a path, nor a variable, nor an argument can hold it
            self._unusable("text cannot hold the character U+0000", span)
        return text

    def _plain(self, text: str, span: Span) -> Scalar:
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text):
            digits = text.lstrip("+-")
            number = int(text, 0) if digits[:2] in ("0o", "0x") else int(text[:40])
            if len(digits) > 20 or not -(2**63) <= number < 2**63:
                self._unusable(
                    f"`{text[:24]}…` does not fit in 64 bits"
                    if len(text) > 24
                    else f"`{text}` does not fit in 64 bits",
                    span,
                )
            return number
        if _FLOAT.fullmatch(text):
            lower = text.lower()
            value = math.inf if "inf" in lower or "nan" in lower else float(text)
            if not math.isfinite(value):
                self._unusable(f"`{text}` is not a finite number", span)
            return value
        return text

    def _unusable(self, message: str, span: Span) -> None:
        self.found.append(Diagnostic("R008", message, span))


def _join(start: Span, end: Span) -> Span:
    return replace(start, end_line=end.end_line, end_column=end.end_column)


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")


def _at(name: str, text: str, position: int) -> Span:
    """The character at a position of a text."""
    before = lines.unified(text[:position])
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    return Span(Source(name, lines.unified(text)), line, column, line, column + 1)


def _syntax_error(source: Source, error: yaml.YAMLError) -> Diagnostic:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    last = source.text.count("\n") + 1
    if line > last:  # libyaml counts a line behind a last one that has no end
        line, column = last, len(source.line(last)) + 1
    span = Span(source, line, column, line, column + 1)
    if source.line(line)[column - 1 : column] == "\t":
        return Diagnostic("R003", "a tab cannot indent YAML", span, helps=("indent with spaces",))
    context = getattr(error, "context", None)
    notes = (f"{context}",) if context else ()
    return Diagnostic("R003", f"not valid YAML: {problem}", span, notes=notes)
