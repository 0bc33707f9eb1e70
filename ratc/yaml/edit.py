"""Edits the text of YAML files that people own: the rest of a file keeps its bytes."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ratc.diagnostics import Edit, Span
from ratc.yaml import lines as line_ends

_BOM = "\ufeff"


def apply(text: str, edits: Sequence[Edit]) -> tuple[str, list[Edit]]:
    """Return the text with the edits applied, and the applied edits. Of two that overlap the first counts. An edit is
    skipped if its original words changed or if it spans lines. A byte order mark is kept; spans do not count it.
    """
    bom, body = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    starts = line_ends.starts(body)
    done: list[Edit] = []
    parts: list[str] = []
    at = 0
    for edit in sorted(edits, key=lambda edit: (edit.span.line, edit.span.column)):
        if edit.span.line > len(starts) or edit.span.end_line != edit.span.line:
            continue
        start, end = (starts[edit.span.line - 1] + column - 1 for column in (edit.span.column, edit.span.end_column))
        if start < at or body[start:end] != _words(edit.span):
            continue
        parts += [body[at:start], edit.text]
        at = end
        done.append(edit)
    return bom + "".join([*parts, body[at:]]), done


def _words(span: Span) -> str | None:
    """Return the text of a span at the time of the finding; None if the line is shorter than that."""
    line = span.source.line(span.line)
    return line[span.column - 1 : span.end_column - 1] if span.end_column - 1 <= len(line) else None


def put_items(text: str, key: str, items: Sequence[Mapping[str, Any]], without: Collection[int] = ()) -> str:
    """Return the text of a mapping after adding items to the list at one of its keys, and removing some positions.

    Items that stay keep their bytes and comments; a list in flow style is written again, in block style. Raises
    ValueError for a text that is not a mapping in block style, as JSON is not.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import YAMLError

    ends = line_ends.END.findall(text)
    newline = ends[0] if ends else "\n"
    try:
        reader = YAML()
        reader.preserve_quotes = True
        tree: Any = reader.load(text)
    except YAMLError as error:
        raise ValueError(str(error)) from None
    if tree is not None and (type(tree) is not CommentedMap or tree.fa.flow_style()):
        raise ValueError("no mapping in block style")
    if tree is None or key not in tree.lc.data:  # a merged mapping may have it, too
        apart = "" if not text or text.endswith(tuple(_ENDS)) else newline
        return text + apart + _dumped({key: [_item(item) for item in items]}, newline)
    lines = _lines(text)
    first = tree.lc.key(key)[0]
    end = _end(lines, first, min((at for at in _starts(tree) if at > first), default=len(lines)))
    kept: Any = tree[key] or []
    if not kept or kept.fa.flow_style() or len(without) == len(kept):
        left = [item for at, item in enumerate(kept) if at not in without]
        middle = [_dumped({key: [*left, *map(_item, items)]}, newline)]
    else:
        column = kept.lc.col
        starts = [_dash(lines, kept.lc.item(at)[0], column) for at in range(len(kept))]
        cuts = [*starts, end]
        pieces = ["".join(lines[cuts[at] : cuts[at + 1]]) for at in range(len(kept)) if at not in without]
        last = pieces.pop()
        pieces.append(last if last.endswith(tuple(_ENDS)) else last + newline)
        added = [_dumped([_item(item) for item in items], newline, column)] if items else []
        middle = [*lines[first : starts[0]], *pieces, *added]
    return "".join([*lines[:first], *middle, *lines[end:]])


_ENDS = ("\n", "\r", "\x85", "\u2028", "\u2029")


def _lines(text: str) -> list[str]:
    at, lines = 0, []
    for match in line_ends.END.finditer(text):
        lines.append(text[at : match.end()])
        at = match.end()
    return [*lines, text[at:]] if at < len(text) else lines


def _dash(lines: Sequence[str], at: int, column: int) -> int:
    """Return the line of the dash of a list item, from the line of the item's first value."""
    while lines[at][: column + 1] != " " * column + "-":
        at -= 1
    return at


def _starts(tree: Any) -> list[int]:
    """Return the first lines of a mapping's keys."""
    return [tree.lc.key(key)[0] for key in tree.lc.data]


def _end(lines: Sequence[str], first: int, following: int) -> int:
    """Return the line after a block: empty lines and unindented comments before the next key belong to that key."""
    while following - 1 > first and (not lines[following - 1].strip() or lines[following - 1].startswith("#")):
        following -= 1
    return following


def _item(value: Mapping[str, Any]) -> Any:
    """Return an item in block style, one key per line; nested values stand on one line each."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    def line(value: Any) -> Any:
        if isinstance(value, Mapping):
            flow: Any = CommentedMap((key, line(item)) for key, item in value.items())
        elif isinstance(value, (list, tuple)):
            flow = CommentedSeq(line(item) for item in value)
        else:
            return value
        flow.fa.set_flow_style()
        return flow

    def block(value: Any) -> Any:
        several = isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value)
        return [line(item) for item in value] if several else line(value)

    return {key: block(item) for key, item in value.items()}


def _dumped(value: Any, newline: str, indent: int = 0) -> str:
    from ruamel.yaml import YAML

    writer = YAML()
    writer.width = 2**16
    writer.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    writer.dump(value, out)
    lines = out.getvalue().splitlines()
    # ruamel.yaml indents a list at the top as it does one below a key.
    apart = indent - (2 if isinstance(value, list) else 0)
    return "".join((" " * apart + line if apart > 0 else line[-apart:]) + newline for line in lines)
