"""Answers to an editor about a spec: its findings, the value under the cursor with its reason, the keys to follow.

Places are lines and columns from 1, columns in characters, as in :mod:`ratc.diagnostics`. No code of a spec is run and
no model is traced.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from ratc import explain, resources, schema
from ratc.compiler import points
from ratc.console import silence
from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.lsp import flow
from ratc.plan import Plan
from ratc.program import used
from ratc.render import plan as render
from ratc.secrets.redact import redact
from ratc.workflow import inputs
from ratc.workflow.inputs import Loaded
from ratc.workflow.request import CompileRequest
from ratc.workflow.validate import validate
from ratc.yaml import lines as line_ends
from ratc.yaml.parse import Document, Node, parse

#: The comment that `ratc init` binds the schema with, for editors.
#: The callables of examples are made-up names.
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:\w+")
_BOUND = re.compile(r"^# yaml-language-server: \$schema=\S*experiment\.schema\.json", re.MULTILINE)
_KEY = re.compile(r"""^\ufeff?(["']?)experiment_name\1\s*:""", re.MULTILINE)
#: A line of a block mapping: its indentation, with the dash of a list, its key, and the rest.
_LINE = re.compile(r"^(?P<indent>[ ]*(?:- )?)(?P<key>[\w.-]*)(?P<colon>\s*:(?:\s|$))?(?P<rest>.*)$")
#: Values of the plan that are shown for one key.
_MOST = 6


@dataclass(frozen=True, slots=True)
class Analysis:
    """A spec as its text stands: its findings, and its plan if it has no errors."""

    found: tuple[Diagnostic, ...]
    document: Document | None
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class Completion:
    """A word that may stand at the cursor. ``insert`` is the text for it, ``detail`` one line, ``text`` Markdown."""

    label: str
    insert: str
    detail: str
    text: str
    is_key: bool


def is_spec(text: str) -> bool:
    """Whether a YAML text is a spec: it binds the schema, or names an experiment."""
    return bool(_BOUND.search(text) or _KEY.search(text))


def analyse(path: str, text: str, target: str = "local") -> Analysis:
    """Check a text as the spec at a path. Variables of the environment do not lie over it."""
    request = CompileRequest(path, target, text=_bytes(text), predict=False)
    with silence():
        loaded = inputs.load(request)
        found = validate(loaded, request)
        plan = _plan(request, loaded) if not any(item.severity is Severity.ERROR for item in found) else None
    document, _ = parse(path, _bytes(text))
    return Analysis(found, document, plan)


def _plan(request: CompileRequest, loaded: Loaded) -> Plan | None:
    """The plan without a prediction; of a sweep that of its shared values."""
    assert loaded.settings is not None
    assert loaded.document is not None
    if points(loaded.document)[0]:
        return None
    gathered, _ = inputs.gather(request, loaded.settings)
    if gathered is None:
        return None
    plan, _, _ = inputs.decide(request, loaded.settings, gathered, predicts=False)
    return replace(plan, settings=used(plan.settings)) if plan else None


def hover(analysis: Analysis, line: int, column: int) -> tuple[str, Span] | None:
    """Return Markdown on the key or value at a place (its value, its reason, the key's description), and the key's
    range; None if there is none.
    """
    found = _at(analysis.document, line, column)
    if found is None:
        return None
    path, node = found
    parts = []
    if analysis.plan is not None:
        # A word of the spec can stand for several values of the plan, as that of a loss does.
        names = explain.find(analysis.plan, path)[:_MOST] if not isinstance(node.value, dict) else []
        links = [link for name in names if (link := explain.tree(analysis.plan, name))]
        parts += ["```\n" + "".join(map(render.chain, links)).rstrip() + "\n```"] if links else []
    described = schema.subschema(resources.schema("experiment"), path)
    if described and described.get("description"):
        parts.append(_described(path, described))
    return ("\n\n".join(parts), node.key_span or node.span) if parts else None


def _described(path: str, described: dict[str, Any]) -> str:
    lines = [f"**`{path}`** ({_kind(described)})", described["description"]]
    if described.get("default") not in (None, "", [], {}):
        lines.append(f"Default: `{described['default']}`")
    if described.get("enum"):
        lines.append("One of " + ", ".join(f"`{word}`" for word in described["enum"] if word is not None))
    return "\n\n".join(lines)


def _kind(described: dict[str, Any]) -> str:
    if described.get("enum"):
        return "a word"
    kinds = described.get("type", "any")
    return " or ".join(kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null")


def _at(document: Document | None, line: int, column: int) -> tuple[str, Node] | None:
    """The innermost node with its key or value at a place, and its dotted path."""
    if document is None:
        return None
    path, node = "", document.root
    while isinstance(node.value, dict):
        below = next((one for one in node.value.items() if _holds(one[1], line, column)), None)
        if below is None:
            break
        path, node = (f"{path}.{below[0]}" if path else below[0]), below[1]
    return (path, node) if path else None


def _holds(node: Node, line: int, column: int) -> bool:
    first = node.key_span or node.span
    return (first.line, first.column) <= (line, column) < (node.span.end_line, node.span.end_column + 1)


def completions(text: str, line: int, column: int) -> list[Completion]:
    """Return the keys, or the values of a key, that are valid at a place of a text. The text may be incomplete."""
    lines = line_ends.unified(text).split("\n")
    if not 0 < line <= len(lines):
        return []
    written = lines[line - 1][: column - 1]
    inside = flow.place([*lines[: line - 1], written], [lines[line - 1][column - 1 :], *lines[line:]])
    tree = resources.schema("experiment")
    if inside is not None:
        begins = _LINE.match(lines[inside.line])
        above = (*_enclosing_keys(lines[: inside.line], len(begins["indent"]) if begins else 0), *inside.above)
        if inside.key is not None:
            return _values(schema.subschema(tree, ".".join((*above, inside.key))), written)
        return list(_keys(schema.subschema(tree, ".".join(above)) or {}, inside.keys, " {}"))
    match = _LINE.match(written)
    if match is None or "#" in match["rest"]:
        return []
    above = _enclosing_keys(lines[: line - 1], len(match["indent"]))
    if match["colon"]:
        return _values(schema.subschema(tree, ".".join((*above, match["key"]))), written)
    section = schema.subschema(tree, ".".join(above)) if above else tree
    return list(_keys(section or {}, _present_keys(text, above), "\n  "))


def _enclosing_keys(lines: list[str], indent: int) -> tuple[str, ...]:
    """The keys of the mappings that a line with this indentation lies in, the outermost first."""
    path: list[str] = []
    for text in reversed(lines):
        match = _LINE.match(text)
        if match is None or not match["colon"] or not match["key"] or len(match["indent"]) >= indent:
            continue
        path.insert(0, match["key"])
        indent = len(match["indent"])
        if indent == 0:
            break
    return tuple(path)


def _present_keys(text: str, above: tuple[str, ...]) -> set[str]:
    """The keys that a section has already; none if the text cannot be read yet."""
    try:
        node = yaml.load(text, yaml.BaseLoader)  # which reads every value as text
    except (yaml.YAMLError, RecursionError):
        return set()
    for key in above:
        node = node.get(key) if isinstance(node, dict) else None
    return set(map(str, node)) if isinstance(node, dict) else set()


def _keys(section: dict[str, Any], there: Collection[str], opened: str) -> Iterator[Completion]:
    """Yield the keys of a section that are not there yet; ``opened`` is written behind one that is a section itself."""
    for key, described in section.get("properties", {}).items():
        if key in there or described.get("deprecated"):
            continue
        insert = f"{key}:{opened}" if schema.is_section(described) else f"{key}: "
        text = _described(key, described) if described.get("description") else ""
        yield Completion(key, insert, _kind(described), text, True)


def _values(described: dict[str, Any] | None, written: str) -> list[Completion]:
    """Return the words for a key, behind the space that its colon needs."""
    space = " " if written.endswith(":") else ""
    return [replace(one, insert=space + one.insert) for one in _words(described or {})]


def _words(described: dict[str, Any]) -> Iterator[Completion]:
    kinds = described.get("type", ())
    words = described.get("enum") or ([True, False] if "boolean" in kinds else [])
    words = words or schema.words_of(described) or described.get("examples", [])
    for word in words:
        if isinstance(word, (dict, list)) or word is None or _CALLABLE.fullmatch(str(word)):
            continue
        shown = {True: "true", False: "false"}.get(word, str(word)) if isinstance(word, bool) else str(word)
        default = " (default)" if word == described.get("default") else ""
        yield Completion(shown, shown, f"{_kind(described)}{default}", redact(described.get("description", "")), False)


def _bytes(text: str) -> bytes:
    """The text as a file would hold it. An editor may send half of a surrogate pair, which then is not UTF-8: R001."""
    return text.encode("utf-8", "surrogatepass")
