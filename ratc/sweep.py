"""A spec's ``sweep`` -> the points of an array: the name of each, and its values over the spec's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from ratc.diagnostics import Diagnostic, did_you_mean
from ratc.layers import SHORT_NAMES, put
from ratc.schema import is_section, key_paths, subschema
from ratc.yaml.parse import Document, Node

#: More points than this are a mistake: Slurm and LSF take a thousand in an array unless the site allows more.
MOST_POINTS = 100_000
#: Keys that all points of an array share, since one job requests them or the point's name decides them.
SHARED = ("resources", "environment", "launcher", "sweep", "tuning", "experiment_name", "output_dir", "debug")
#: An array runs one program: its code was reviewed, and is trusted; its arguments may differ.
ONE_PROGRAM = ("entrypoint.script", "entrypoint.module", "entrypoint.command")
_KINDS = ("grid", "list", "points")


@dataclass(frozen=True, slots=True)
class Point:
    """One run of the array. ``index`` counts from 1, as LSF does; ``nodes`` are values with their places."""

    index: int
    name: str
    nodes: tuple[tuple[str, Node], ...]

    @property
    def text(self) -> str:
        """The point's values on one line."""
        return " ".join(f"{path}={_inline(node.data())}" for path, node in self.nodes)


def points(document: Document, schema: dict[str, Any]) -> tuple[tuple[Point, ...], tuple[Diagnostic, ...]]:
    """The points of a spec that the schema accepts; none if it has no sweep. Codes: R330, R331, R332, R333."""
    section = document.root.find(("sweep",))
    if section is None or not isinstance(section.value, dict):
        return (), ()
    given = [kind for kind in _KINDS if kind in section.value and section.value[kind].value is not None]
    if len(given) != 1:
        message = "a sweep has one of `grid`, `list` and `points`" + (f", not {len(given)} of them" if given else "")
        return (), (Diagnostic("R330", message, section.key_span or section.span),)
    kind, node = given[0], section.value[given[0]]
    found = tuple(_wrong_keys(kind, node, schema))
    if found:
        return (), found
    many = _count(kind, node)
    if not 0 < many <= MOST_POINTS:
        message = "the sweep has no points" if not many else f"a sweep of {many:,} points; the limit is {MOST_POINTS:,}"
        return (), (Diagnostic("R333", message, node.key_span or node.span),)
    return tuple(_points(kind, node, many)), ()


def apply(document: Document, point: Point) -> Document:
    """The spec of one point: its values in their places, and no sweep or study."""
    kept = {key: child for key, child in _keys(document.root).items() if key not in ("sweep", "tuning")}
    root = replace(document.root, value=kept)
    for path, node in point.nodes:
        root = put(root, path.split("."), replace(node, layer="sweep"))
    return Document(root)


def met_at(point: Point, found: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """The diagnostics with a note that says in which point they were met."""
    note = f"in point {point.name}: {point.text}"
    return tuple(replace(item, notes=(*item.notes, note)) for item in found)


def without_repeats(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Return the diagnostics without repetitions; each is kept at the first point that has it."""
    first: dict[tuple[object, ...], Diagnostic] = {}
    for item in found:
        first.setdefault((item.code, item.message, item.span), item)
    return list(first.values())


def full_path(key: str) -> str:
    """Return the dotted path of a key of a sweep: short names, as in options, are taken too."""
    return SHORT_NAMES.get(key.replace("_", "-"), key)


def _groups(kind: str, node: Node) -> list[tuple[str | None, dict[str, Node]]]:
    """Return the mappings of keys in a sweep, with their names: one for a grid, else one for each point."""
    if kind == "grid":
        return [(None, _keys(node))]
    if kind == "points":
        return [(name, _keys(child)) for name, child in _keys(node).items()]
    assert isinstance(node.value, list)
    return [(None, _keys(child)) for child in node.value]


def _keys(node: Node) -> dict[str, Node]:
    assert isinstance(node.value, dict), "the schema has checked the form"
    return node.value


def _wrong_keys(kind: str, node: Node, schema: dict[str, Any]) -> Iterator[Diagnostic]:
    said = set()
    for key, value in (pair for _, group in _groups(kind, node) for pair in group.items()):
        path = full_path(key)
        if path in said:
            continue
        said.add(path)
        sub = subschema(schema, path)
        if path.split(".")[0] in SHARED:
            helps = ("all points have the same target and the same request to the scheduler",)
            yield Diagnostic("R332", f"a sweep cannot vary `{path}`", value.key_span, helps=helps)
        elif path in ONE_PROGRAM:
            helps = ("points may differ in `entrypoint.args`, and in values that its placeholders name",)
            message = f"a sweep cannot vary `{path}`: an array runs one program"
            yield Diagnostic("R332", message, value.key_span, helps=helps)
        elif sub is None or is_section(sub):
            what = "is a section, not a key" if sub else "names no key of a spec"
            yield Diagnostic("R331", f"`{key}` {what}", value.key_span, helps=did_you_mean(key, key_paths(schema)))


def _choices(node: Node) -> list[Node]:
    assert isinstance(node.value, list), "the schema has checked the form"
    return node.value


def _count(kind: str, node: Node) -> int:
    if kind != "grid":
        return len(_groups(kind, node))
    return prod(len(_choices(child)) for child in _keys(node).values()) if _keys(node) else 0


def _points(kind: str, node: Node, many: int) -> Iterator[Point]:
    width = max(4, len(str(many)))
    if kind == "grid":
        paths = [full_path(key) for key in _keys(node)]
        for index, values in enumerate(product(*map(_choices, _keys(node).values())), 1):
            yield Point(index, f"{index:0{width}}", tuple(zip(paths, values, strict=True)))
        return
    for index, (name, group) in enumerate(_groups(kind, node), 1):
        nodes = tuple((full_path(key), value) for key, value in group.items())
        yield Point(index, name or f"{index:0{width}}", nodes)


def _inline(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return " ".join(text.split())
