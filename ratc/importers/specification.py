"""Imported items -> the text of a valid spec, with the source of each value in a comment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ratc import resources, schema
from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.importers.merge import Merged
from ratc.importers.model import Left
from ratc.secrets.redact import redact
from ratc.yaml.parse import Document, parse
from ratc.yaml.write import comment, mapping

#: Required keys of a spec, and placeholders for them until the user sets them.
REQUIRED = {"experiment_name": "imported", "data.data_dir": "data"}


def required(values: Iterable[str]) -> dict[str, str]:
    """Return the required keys of a spec with these paths, with default values: none for data with an `entrypoint`."""
    is_program = any(path.startswith("entrypoint.") for path in values)
    return {path: stand_in for path, stand_in in REQUIRED.items() if not is_program or path != "data.data_dir"}


def write(merged: Merged, names: Sequence[str], target: str | None = None) -> tuple[str, tuple[Diagnostic, ...]]:
    """Return the spec's text, and findings to look at; ``target`` is the scheduler of a batch script among the files.
    Codes, all of them warnings: R432, R433, R434.
    """
    _refused(merged)
    found = list(merged.found)
    values = {path: item.value for path, item in merged.values.items()}
    comments: dict[str, str] = {}
    for path, given in merged.values.items():
        leaves = [f"{path}.{key}" for key in given.value] if isinstance(given.value, dict) else [path]
        place = f"{redact(given.span.source.name)}:{given.span.line}"
        said = f"as {given.source} has it: {place} has no option for it" if given.is_assumed else f"from {place}"
        comments |= dict.fromkeys(leaves, said)
    for path, stand_in in required(values).items():
        if path not in values:
            values[path], comments[path] = stand_in, "to be filled in: no imported file gives it"
            message = f"`{path}` is not given by {', '.join(names)}"
            note = (f"`{stand_in}` stands there until you replace it",)
            found.append(Diagnostic("R433", message, notes=note, severity=Severity.WARNING))
    lost = [item for item in merged.left if not item.deliberate]
    for item in lost:
        message = f"not imported: `{_short(redact(item.source))}`"
        found.append(Diagnostic("R434", message, item.span, (item.why,), severity=Severity.WARNING))
    check = "ratc validate" if target is None else f"ratc validate --target {target}"
    head = comment(f"Imported by ratc from {redact(', '.join(names))}. Read it, then check it with `{check}`.")
    return head + mapping(_tree(values), comments) + "".join(_left_out(merged.left)), tuple(found)


def _refused(merged: Merged) -> None:
    """Move values that YAML cannot hold or the schema refuses to the items left out, with the messages as reasons."""
    for name, item in list(merged.values.items()):
        document, found = parse("spec", mapping(_tree({name: item.value})).encode())
        if document is None:
            del merged.values[name]
            merged.left.append(Left(item.source, item.span, found[0].message))
    for _ in range(len(merged.values)):
        values = {**REQUIRED, **{path: item.value for path, item in merged.values.items()}}
        document, _ = parse("spec", mapping(_tree(values)).encode())
        assert document is not None
        _, found = schema.validate(document, resources.schema("experiment"))
        bad = {path: item.message for item in found if item.span and (path := _path_of(document, item.span))}
        known = {path: words for path, words in bad.items() if path in merged.values}
        if not known:
            return
        for path, words in known.items():
            item = merged.values.pop(path)
            merged.left.append(Left(item.source, item.span, words))


def _path_of(document: Document, span: Span) -> str | None:
    """Return the dotted path of the leaf at a place of the spec's text: each leaf has a line of its own."""
    lines = ((path, node.key_span or node.span) for path, node in document.root.leaves())
    return next((path for path, place in lines if place.line == span.line), None)


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


def _left_out(left: Sequence[Left]) -> Iterator[str]:
    groups = (("Not imported", False), ("Left to ratc", True))
    for title, deliberate in groups:
        rows = [item for item in left if item.deliberate == deliberate]
        if rows:
            yield "\n" + comment(f"{title}:")
        for item in rows:
            place = f"{redact(item.span.source.name)}:{item.span.line}"
            yield comment(f"{place}  {_short(redact(item.source))}: {redact(item.why)}", indent=3)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:99]}…"
