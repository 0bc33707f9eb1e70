"""What was imported -> the text of a spec, which the schema takes, with where each value is from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ratc import resources, schema
from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.document import parse
from ratc.migrate.merge import Merged
from ratc.migrate.model import Left
from ratc.redact import redact
from ratc.yaml_text import mapping

#: What a spec must say, and what stands there until somebody says it.
REQUIRED = {"experiment_name": "imported", "data.data_dir": "data"}


def write(merged: Merged, names: Sequence[str]) -> tuple[str, tuple[Diagnostic, ...]]:
    """The spec's text, and what to look at. Codes, all of them warnings: R432, R433, R434."""
    _refused(merged)
    found = list(merged.found)
    values = {path: item.value for path, item in merged.values.items()}
    comments = {path: f"from {item.span.source.name}:{item.span.line}" for path, item in merged.values.items()}
    for path, stand_in in REQUIRED.items():
        if path not in values:
            values[path], comments[path] = stand_in, "to be said: no imported file says it"
            message = f"`{path}` is not said by {', '.join(names)}"
            note = (f"`{stand_in}` stands there until you say it",)
            found.append(Diagnostic("R433", message, notes=note, severity=Severity.WARNING))
    lost = [item for item in merged.left if not item.deliberate]
    for item in lost:
        message = f"not carried over: `{redact(_short(item.source))}`"
        found.append(Diagnostic("R434", message, item.span, (item.why,), severity=Severity.WARNING))
    head = f"# Imported by ratc from {', '.join(names)}. Look it through, then `ratc validate` it.\n"
    return head + mapping(_tree(values), comments) + "".join(_account(merged.left)), tuple(found)


def _refused(merged: Merged) -> None:
    """Leave what the schema does not take, with its words."""
    for _ in range(len(merged.values)):
        values = {**REQUIRED, **{path: item.value for path, item in merged.values.items()}}
        text = mapping(_tree(values))
        document, found = parse("spec", text.encode())
        if document is not None:
            _, found = schema.validate(document, resources.schema("experiment"))
        bad = {_path_at(text, item.span): item.message for item in found if item.span}
        known = {path: words for path, words in bad.items() if path in merged.values}
        if not known:
            return
        for path, words in known.items():
            item = merged.values.pop(path)
            merged.left.append(Left(item.source, item.span, words))


def _path_at(text: str, span: Span) -> str:
    """The dotted path of the key on a line of what :func:`ratc.yaml_text.mapping` wrote."""
    keys: list[str] = []
    for line in text.split("\n")[: span.line]:
        depth = (len(line) - len(line.lstrip())) // 2
        keys = [*keys[:depth], line.strip().partition(":")[0].strip('"')]
    return ".".join(keys)


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    order = list(resources.schema("experiment")["properties"])
    for path in sorted(values, key=lambda path: order.index(path.split(".")[0]) if path.split(".")[0] in order else 0):
        *parents, key = path.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[key] = values[path]
    return tree


def _account(left: Sequence[Left]) -> Iterator[str]:
    groups = (("Not carried over", False), ("Left to ratc", True))
    for title, deliberate in groups:
        rows = [item for item in left if item.deliberate == deliberate]
        if rows:
            yield f"\n# {title}:\n"
        for item in rows:
            yield f"#   {item.span.source.name}:{item.span.line}  {redact(_short(item.source))}: {redact(item.why)}\n"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:99]}…"
