"""A plan, or the chain behind one of its values, as text, a table or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ratc import markup
from ratc.explain import Link, source
from ratc.markup import code, escape, visible
from ratc.plan import Plan, Value
from ratc.secrets import excerpt
from ratc.secrets.redact import plain, redact, shown

VERSION = 1
#: Narrower columns than these cannot be read.
_LEAST = 20


def chain(link: Link, depth: int = 0) -> str:
    """An indented list, one line a link, with the line of the spec or of the facts that each ends in."""
    pad = "  " * depth
    lines = [visible(f"{pad}{link.path} = {shown(link.path, link.value.value)}  [{source(link.value)}]")]
    if link.value.origin == "derived" and link.value.reason:
        lines.append(visible(f"{pad}  because: {redact(link.value.reason)}"))
    if link.is_above:
        lines.append(f"{pad}  (its inputs are shown above)")
    quoted = _quoted(link.value)
    if quoted:
        lines.append(f"{pad}  | {quoted}")
    return "\n".join(lines) + "\n" + "".join(chain(below, depth + 1) for below in link.below)


def table(plan: Plan, paths: Sequence[str], width: int | None = None) -> str:
    """Return one line per value: path, value, origin or reason. Cut at ``width`` columns; whole if that is None."""
    found = ((path.removeprefix("spec:").removeprefix("facts:"), plan.lookup(path)) for path in paths)
    rows = [
        (visible(path), shown(path, value.value), visible(_why(value))) for path, value in found if value is not None
    ]
    first, second = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    if width is not None:
        second = min(second, max(_LEAST, (width - first - 4) // 2))
    lines, section = [], None
    for path, value, why in rows:
        if section not in (None, path.partition(".")[0]):
            lines.append("")
        section = path.partition(".")[0]
        cell = value if width is None else _cut(value, second)
        line = f"{path:<{first}}  {cell:<{second}}  {why}".rstrip()
        lines.append(line if width is None else _cut(line, width))
    return "\n".join(lines) + "\n"


def markdown(plan: Plan, paths: Sequence[str], remarks: Sequence[str] = ()) -> str:
    """Return a Markdown table of path, value, and origin or reason."""
    found = ((path.removeprefix("spec:").removeprefix("facts:"), plan.lookup(path)) for path in paths)
    rows = [
        (code(path), code(shown(path, value.value)), escape(_why(value))) for path, value in found if value is not None
    ]
    lines = [*(f"- {escape(redact(remark))}\n" for remark in remarks), "\n" * bool(remarks)]
    lines += ["| value | is | why |\n|---|---|---|\n", *(f"| {' | '.join(row)} |\n" for row in rows)]
    return "".join(lines)


def document(links: Sequence[Link], remarks: Sequence[str] = (), findings: Sequence[Any] = ()) -> str:
    """The chains as JSON; docs/concepts/explain.md describes it."""
    tree = {
        "version": VERSION,
        "remarks": [redact(remark) for remark in remarks],
        "findings": list(findings),
        "values": [_object(link) for link in links],
    }
    return markup.json(tree)


def _object(link: Link) -> dict[str, Any]:
    value, span = link.value, link.value.span
    place = None
    if span is not None:
        file = span.source.name if span.source.is_file else None
        place = {"source": span.source.name, "file": file, "line": span.line, "column": span.column}
        place["text"] = excerpt.line(span.source, span.line)
    return {
        "path": link.path,
        "value": plain(link.path, value.value),
        "origin": value.origin,
        "reason": redact(value.reason),
        "place": place,
        "is_above": link.is_above,
        "inputs": [_object(below) for below in link.below],
    }


def _quoted(value: Value) -> str:
    if value.span is None or not value.span.source.is_file:
        return ""
    return _cut(visible(excerpt.line(value.span.source, value.span.line).strip()), 100)


def _why(value: Value) -> str:
    return redact(value.reason) if value.origin == "derived" and value.reason else source(value)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"
