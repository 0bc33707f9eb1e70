"""Document -> :class:`~ratc.plan.Values`: validates by the JSON Schema, and turns its errors into diagnostics.

Defaults come from the schema too, so that its readers know the value of a missing key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import jsonschema_rs

from ratc.diagnostics import Diagnostic, Edit, Fix, Span, closest, did_you_mean
from ratc.plan import Origin, Value, Values
from ratc.units import WALLTIME
from ratc.yaml.parse import Document, Node

_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping of keys",
    "null": "null",
}
_LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}
_SIZES = {
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "minLength": "at least {} character",
    "maxLength": "at most {} characters",
    "minProperties": "at least {} entries",
    "maxProperties": "at most {} entries",
}
#: What the keys of a mapping name and their form, by a part of the schema's pattern for them.
_NAMES = (
    ("._-]*$", "", "use letters, digits, `.`, `_` and `-`, a letter or a digit first"),
    (":", " of a callable", "write `package.module:callable`"),
    (
        r"(\.",
        " of a key",
        "write sections and keys with dots, as `training.epochs`; of a list, the key of the whole list",
    ),
    ("", " of a variable, an argument or a task", "use letters, digits and `_`"),
)
_validators: dict[int, tuple[dict[str, Any], jsonschema_rs.Draft202012Validator]] = {}
#: Keys that jsonschema_rs takes for an index.
_NUMBER = re.compile(r"\+?[0-9]+")
#: From here on two words are the same but for a slip of the fingers: one letter of five.
_TYPO = 0.8
#: Unknown keys of one mapping that are compared with the known ones: a comparison takes milliseconds.
_SUGGESTED = 200


def validate(document: Document, schema: dict[str, Any]) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """Check a document and fill in the defaults of missing keys. Codes: R101-R106."""
    found: list[Diagnostic] = []
    errors = list(_validator(schema).iter_errors(document.root.data()))
    mistyped = [error.instance_path for error in errors if error.kind.name == "type"]
    for error in errors:
        if error.kind.name != "enum" or error.instance_path not in mistyped:  # one mistake is said once
            found += _explain(error, document, schema)
    if found:
        return None, tuple(sorted(found, key=_position))
    values: dict[str, Value] = {}
    _fill("", document.root, schema, values)
    return Values(values), ()


def _validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Return the compiled schema, made once: a sweep checks thousands of documents against it."""
    known = _validators.get(id(schema))
    if known is None or known[0] is not schema:
        known = _validators[id(schema)] = (schema, jsonschema_rs.Draft202012Validator(schema))
    return known[1]


def subschema(schema: dict[str, Any], path: str) -> dict[str, Any] | None:
    """The schema of the key at a dotted path; ``{}`` inside a free mapping; None if no such key exists."""
    node = schema
    for key in path.split("."):
        if is_section(node) and key in node["properties"]:
            node = node["properties"][key]
        elif node.get("additionalProperties", "properties" not in node and "object" in _types(node)) is not False:
            rest = node.get("additionalProperties")
            if not isinstance(rest, dict):
                return {}
            node = rest
        else:
            return None
    return node


def key_paths(schema: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted path of every key that holds a value."""
    paths = []
    for key, child in schema.get("properties", {}).items():
        path = f"{prefix}{key}"
        paths += key_paths(child, f"{path}.") if is_section(child) else [path]
    return paths


def is_section(schema: dict[str, Any]) -> bool:
    """Whether a key holds other keys. A mapping that may be replaced by a number is a value."""
    return "properties" in schema and "integer" not in _types(schema)


def _types(schema: dict[str, Any]) -> list[str]:
    kind = schema.get("type", [])
    return [kind] if isinstance(kind, str) else list(kind)


def _position(diagnostic: Diagnostic) -> tuple[str, int, int, str]:
    span = diagnostic.span
    return (span.source.name, span.line, span.column, diagnostic.message) if span else ("", 0, 0, diagnostic.message)


def _fill(path: str, node: Node | None, schema: dict[str, Any], into: dict[str, Value]) -> None:
    """Flatten the document along the schema. A free mapping and a list are values of their own.

    A mapping of sections by names that are free is both: a value, and its sections' keys.
    """
    if is_section(schema) and not (node is not None and node.value is None):
        children = node.value if node is not None and isinstance(node.value, dict) else {}
        if node is None:
            for name, value in _defaults(path, schema).items():
                # A caller may change a list or a mapping of a plan: it must not be the schema's own.
                into[name] = replace(value, value=deepcopy(value.value)) if value.value.__class__ in _OPEN else value
            return
        for key, child in schema["properties"].items():
            _fill(f"{path}.{key}" if path else key, children.get(key), child, into)
    elif node is None:
        into[path] = Value(deepcopy(schema.get("default")), "default", "default of the schema")
    else:
        origin: Origin = "spec" if node.layer == "spec" else "layer"
        into[path] = Value(_coerce(node.data(), schema), origin, node.layer, span=node.span)
        inner = schema.get("additionalProperties")
        inner = inner if isinstance(inner, dict) else {}
        if "properties" in inner and inner.get("type") == "object" and isinstance(node.value, dict):
            for key, child in node.value.items():
                _fill(f"{path}.{key}", child, inner, into)


#: Types of defaults that can be changed.
_OPEN = frozenset((list, dict))
#: The defaults of sections, each with its schema: all points of a sweep leave out the same ones.
_kept: dict[tuple[str, int], tuple[dict[str, Any], dict[str, Value]]] = {}


def _defaults(path: str, section: dict[str, Any]) -> dict[str, Value]:
    """The values of a section that a document leaves out."""
    schema, found = _kept.get((path, id(section)), (None, {}))
    if schema is not section:
        if "null" in _types(section):
            found = {path: Value(None, "default", "default of the schema")}
        else:
            found = {}
            for key, child in section["properties"].items():
                _fill(f"{path}.{key}" if path else key, None, child, found)
        _kept[path, id(section)] = (section, found)
    return found


def _coerce(value: Any, schema: dict[str, Any]) -> Any:
    """Convert a float for `integer` to int and an int for `number` to float: JSON Schema takes 2.0 for an integer and 1
    for a number. A value that may also be text is kept as it was written.
    """
    kinds = _types(schema)
    if isinstance(value, float) and value.is_integer() and "integer" in kinds:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and "number" in kinds and "string" not in kinds:
        return float(value)
    if isinstance(value, list) and "items" in schema:
        return [_coerce(item, schema["items"]) for item in value]
    if isinstance(value, dict) and "properties" in schema:
        return {key: _coerce(item, schema["properties"][key]) for key, item in value.items()}
    return value


def _at(root: Node, path: Sequence[str | int]) -> Node:
    """Return the node at a path of the validator, or the nearest one above it.

    The validator gives keys that Rust parses as a number by that number (`007`, `+7`), and leaves empty keys out.
    """
    node = root
    for step in path:
        child = node.find((step,))
        while child is None and isinstance(node.value, dict):
            alike = [key for key in node.value if isinstance(step, int) and _NUMBER.fullmatch(key) and int(key) == step]
            if not alike and "" not in node.value:
                return node
            node = node.value[alike[0] if alike else ""]
            child = node if alike else node.find((step,))
        if child is None:
            return node
        node = child
    return node


def _explain(error: Any, document: Document, schema: dict[str, Any]) -> list[Diagnostic]:
    path = list(error.instance_path)
    node = _at(document.root, path)
    kind, span = error.kind, _own_line(node.span)
    # A key that is required under a condition is described at the key itself.
    owner = _lookup(schema, [step for step in list(error.schema_path)[:-1] if step != "then"])
    name = _dotted(path)
    if kind.name == "additionalProperties":
        # The validator leaves an empty key out of its paths; that one is told of by itself (`propertyNames`).
        unknown = [key for key in kind.unexpected if node.find((key,))]
        return [_unknown_key(key, name, node, owner, schema, n < _SUGGESTED) for n, key in enumerate(unknown)]
    if kind.name == "required":
        where = f" in `{name}`" if name else ""
        hint = owner["properties"][kind.property].get("examples", [])
        helps = _misspelt(kind.property, node, owner)
        if not helps and hint and not isinstance(hint[0], (dict, list)):
            helps = (f"add `{kind.property}: {hint[0]}`",)
        return [
            Diagnostic(
                "R105",
                f"the key `{kind.property}` is missing{where}",
                node.key_span or _first(span),
                helps=helps,
            )
        ]
    if kind.name == "type":
        wanted = " or ".join(_WORDS[t] for t in sorted(kind.types, key=list(_WORDS).index) if t != "null")
        if readings := _time_readings(name, node, owner):
            return [readings]
        helps, fix = _corrected(node, owner)
        if node.value is None and "object" in kind.types:
            helps = ("add keys to it, or remove it",)
        if "pattern" in owner:
            helps = helps or tuple(f"write it like `{one}`" for one in owner.get("examples", [])[:1])
        return [Diagnostic("R102", f"`{name}` must be {wanted}, not {_describe(node)}", span, helps=helps, fix=fix)]
    if kind.name == "enum":
        choices = [option for option in kind.options if option is not None]
        words = [str(option).lower() if isinstance(option, bool) else str(option) for option in choices]
        listed = ", ".join(f"`{word}`" for word in words)
        is_word = node.value is not None and not isinstance(node.value, (dict, list))
        meant = did_you_mean(str(node.value), words) if is_word else ()
        helps = meant or (f"use {'one of ' if len(choices) > 1 else ''}{listed}",)
        notes = (f"allowed: {listed}",) if meant and len(choices) > 1 else ()
        value = _shown(node.value) if is_word else _describe(node)
        fix = _proposal(node, words) if meant else None
        return [Diagnostic("R103", f"`{name}` cannot be {value}", span, notes, helps, fix=fix)]
    if kind.name in _LIMITS:
        limit = f"{kind.limit:g}" if isinstance(kind.limit, float) else str(kind.limit)
        return [Diagnostic("R104", f"`{name}` must be {_LIMITS[kind.name]} {limit}, not {node.value}", span)]
    if kind.name in _SIZES:
        return [Diagnostic("R106", f"`{name}` must have {_SIZES[kind.name].format(kind.limit)}", span)]
    if kind.name == "propertyNames":
        key = kind.error.instance
        child = node.find((key,))
        span = child.key_span if child and child.key_span else span
        pattern = kind.error.kind.pattern if kind.error.kind.name == "pattern" else ""
        of, help_text = next((of, form) for part, of, form in _NAMES if part in pattern)
        return [Diagnostic("R106", f"{_shown(key)} is not a valid name{of}", span, helps=(help_text,))]
    if readings := _time_readings(name, node, owner):
        return [readings]
    helps, fix = _corrected(node, owner)
    example = owner.get("examples", [])
    forms = tuple(one["form"] for one in (owner, *owner.get("anyOf", ())) if "form" in one)
    if ":" in owner.get("pattern", ""):  # the name of a callable was meant: a built-in one is not an example of that
        example = [one for one in example if ":" in str(one)] or example
    alike = did_you_mean(str(node.value), words_of(owner))
    fix = fix or (_proposal(node, words_of(owner)) if alike and not helps else None)
    helps = helps or alike or (*forms, *(f"write it like `{one}`" for one in example[:1]))
    notes = (owner["description"],) if owner.get("description") else ()
    return [Diagnostic("R106", f"`{name}` does not have the right form", span, notes, helps, fix=fix)]


def _proposal(node: Node, words: Sequence[str]) -> Fix | None:
    """Return the change of a misspelt value to the closest of the words; None if it has an anchor, or several lines."""
    close, span = closest(str(node.value), words), node.span
    written = span.source.line(span.line)[span.column - 1 : span.end_column - 1]
    if close is None or span.line != span.end_line or written.strip("\"'") != str(node.value):
        return None
    return Fix(f"write `{close}`", (Edit(span, close),), is_certain=False)


def _belongs(key: str, section: str) -> str:
    return f"`{key}` belongs under `{section}`" if section else f"`{key}` is a key of the top level"


def words_of(owner: Mapping[str, Any]) -> list[str]:
    """The words that a value may be instead of a callable's name, from a pattern that begins with them."""
    match = re.match(r"\^\(([a-z_0-9|]+)\)\$\|", owner.get("pattern", ""))
    return match[1].split("|") if match else []


def _time_readings(name: str, node: Node, owner: dict[str, Any]) -> Diagnostic | None:
    """Return a finding for a walltime without a unit, with the times that it can mean."""
    if owner.get("pattern") != WALLTIME:
        return None
    # Imported here: only invalid values need it.
    from ratc.corrections import walltimes

    readings = walltimes(node.value)
    if not readings:
        return None
    message = f"`{name}` {_shown(node.value)} has no unit: hours or minutes?"
    notes = ("Slurm and LSF read a number without a unit as minutes; people often mean hours",)
    number = f"{float(str(node.value)):g}"
    helps = (f'write `"{readings[0]}"` for {number} h, or `"{readings[1]}"` for {number} min',)
    return Diagnostic("R106", message, _own_line(node.span), notes, helps)


def _corrected(node: Node, owner: dict[str, Any]) -> tuple[tuple[str, ...], Fix | None]:
    """Return helps with the same value in valid forms, and a fix if there is only one."""
    from ratc.corrections import corrections

    span = node.span
    written = span.source.line(span.line)[span.column - 1 : span.end_column - 1]
    ways = corrections(node.value, written, owner)
    if not ways:
        return (), None
    helps = (f"write {' or '.join(f'`{way}`' for way in ways)}",)
    # An anchor or a tag belongs to the value's span and must be kept; a list or a block is not rewritten.
    if len(ways) > 1 or written[:1] in ("&", "!", "*") or span.end_line != span.line:
        return helps, None
    return helps, Fix(f"`{written}` is `{ways[0]}` now", (Edit(span, ways[0]),))


def _unknown_key(
    key: str, where: str, node: Node, owner: dict[str, Any], schema: dict[str, Any], suggest: bool
) -> Diagnostic:
    child = node.find((key,))
    assert child is not None
    inside = f" in `{where}`" if where else ""
    span = child.key_span or child.span
    if not suggest:
        return Diagnostic("R101", f"unknown key {_shown(key)}{inside}", span)
    helps = did_you_mean(key, owner.get("properties", {}))
    if not helps:
        elsewhere = [path for path in key_paths(schema) if path.rpartition(".")[2] == key]
        helps = (_belongs(key, elsewhere[0].rpartition(".")[0]),) if elsewhere else ()
        helps = helps or _in_other_section(key, schema)
    fix = _renaming(key, span, node, owner) if child.key_span else None
    return Diagnostic("R101", f"unknown key {_shown(key)}{inside}", span, helps=helps, fix=fix)


def _misspelt(missing: str, node: Node, owner: dict[str, Any]) -> tuple[str, ...]:
    """Return a help that names the unknown key that can mean the missing one."""
    if not isinstance(node.value, dict) or len(node.value) > _SUGGESTED:
        return ()
    known = owner["properties"]
    meant = [
        key
        for key, child in node.value.items()
        if key not in known
        and closest(key, known) == missing
        and isinstance(child.value, dict) == is_section(known[missing])
    ]
    return (f"write `{missing}` for {_shown(meant[0])}",) if len(meant) == 1 else ()


def _in_other_section(key: str, schema: dict[str, Any]) -> tuple[str, ...]:
    """Return a help with the key of another section that a mistyped one can mean: a close word, in one section only."""
    from difflib import get_close_matches

    paths = [path for path in key_paths(schema) if "." in path]
    close = get_close_matches(key.lower(), {path.rpartition(".")[2] for path in paths}, n=2, cutoff=_TYPO)
    meant = [path for path in paths if path.rpartition(".")[2] in close]
    return (f"did you mean `{meant[0]}`?",) if len(meant) == 1 else ()


def _renaming(key: str, span: Span, node: Node, owner: dict[str, Any]) -> Fix | None:
    """Return a fix for a mistyped key, if only one close key exists and that is not given in the same file."""
    from difflib import get_close_matches

    close = get_close_matches(key.lower(), list(owner.get("properties", {})), n=2, cutoff=_TYPO)
    given = node.find((close[0],)) if len(close) == 1 else None
    # In another layer the key may well stand, too.
    if len(close) != 1 or (given and given.key_span and given.key_span.source.name == span.source.name):
        return None
    return Fix(f"`{key}` is `{close[0]}` now", (Edit(span, close[0]),))


def _describe(node: Node) -> str:
    value = node.value
    if isinstance(value, dict):
        return "a mapping of keys"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "empty"
    return f"the text {_shown(value)}" if isinstance(value, str) else _shown(value)


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text if len(text) < 40 else text[:37] + '…'}`"


def _dotted(path: list[str | int]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else step)
    return text


def _lookup(schema: dict[str, Any], path: list[Any]) -> Any:
    node: Any = schema
    for step in path:
        node = node[step]
    return node


def _own_line(span: Span) -> Span:
    """Return the part of a span on its first line, which can be underlined."""
    if span.end_line == span.line:
        return span
    end = max(len(span.source.line(span.line)) + 1, span.column + 1)
    return Span(span.source, span.line, span.column, span.line, end)


def _first(span: Span) -> Span:
    return Span(span.source, span.line, span.column, span.line, span.column + 1)
