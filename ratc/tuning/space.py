"""A spec's ``tuning.search_space`` -> the choices or the range of each key, with a rule for short lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from ratc.diagnostics import Diagnostic, did_you_mean
from ratc.layers import SHORT_NAMES
from ratc.schema import is_section, key_paths, subschema
from ratc.sweep import Point
from ratc.yaml.parse import Node

#: Keys that a study cannot vary: the job's request, and the values that each trial gets from the study.
SHARED = (
    "resources",
    "environment",
    "launcher",
    "sweep",
    "tuning",
    "experiment_name",
    "output_dir",
    "debug",
    "logging",
)
#: From this quotient of its ends on, two real numbers in a list mean a range on a logarithmic scale. Chosen.
LOG_FROM = 10


@dataclass(frozen=True, slots=True)
class Choices:
    """A choice of these, with equal probability."""

    path: str
    nodes: tuple[Node, ...]

    @property
    def text(self) -> str:
        """The reading, for people."""
        return f"one of {', '.join(inline(node.data()) for node in self.nodes)}"


@dataclass(frozen=True, slots=True)
class Range:
    """A number from ``low`` to ``high``, inclusive, uniform on its scale; whole if the key takes whole numbers."""

    path: str
    low: float
    high: float
    log: bool
    whole: bool
    node: Node

    @property
    def text(self) -> str:
        """The reading, for people."""
        kind = "a whole number" if self.whole else "a number"
        scale = "on a logarithmic scale" if self.log else "on a linear scale"
        return f"{kind} from {self.low:g} to {self.high:g}, {scale}"


def read(
    section: Node, schema: dict[str, Any], base: Node | None = None
) -> tuple[list[Choices | Range], list[Diagnostic]]:
    """Return the entries of a search space that the schema accepts, and the findings. Codes: R331, R332, R336.

    A list of two ascending numbers, for a key that takes numbers and not whole numbers alone, is a range; logarithmic
    if its ends are above 0 and 10 times apart. Any other list is of choices. A free key, as those of `model.args`,
    takes whole numbers if the space gives whole numbers, unless the spec (``base``) has a fraction there.
    """
    assert isinstance(section.value, dict), "the schema has checked the form"
    entries: list[Choices | Range] = []
    found: list[Diagnostic] = []
    if not section.value:
        found.append(Diagnostic("R336", "the search space has no keys", section.key_span or section.span))
    for key, node in section.value.items():
        path = full_path(key, schema)
        wrong = _wrong_key(key, path, node, schema)
        if wrong:
            found.append(wrong)
            continue
        sub = subschema(schema, path) or {}
        whole = _is_whole(sub) or (
            "type" not in sub and _gives_whole(node, base.find(tuple(path.split("."))) if base else None)
        )
        entry, problems = _entry(path, node, whole)
        found += problems
        if any(other.path == path for other in entries):
            found.append(Diagnostic("R336", f"`{path}` is in the search space twice", node.key_span))
        elif entry is not None:
            entries.append(entry)
    return entries, found


def full_path(key: str, schema: dict[str, Any]) -> str:
    """Return the dotted path of a key. Short names, as in options, are taken too, and keys of `training` without it."""
    short = SHORT_NAMES.get(key.replace("_", "-"))
    within = f"training.{key}"
    return short or (within if subschema(schema, key) is None and subschema(schema, within) is not None else key)


def inline(value: Any) -> str:
    """A value on one line."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return " ".join(text.split())


def number_at(entry: Range, share: float) -> Node:
    """The number at a share in [0, 1) of a range."""
    low, high = entry.low, entry.high + (1 if entry.whole else 0)
    value = low * (high / low) ** share if entry.log else low + (high - low) * share
    # Four digits: a person reads them, and no training can tell more.
    number = int(value) if entry.whole else float(f"{value:.3e}")
    return replace(entry.node, value=min(max(number, entry.low), entry.high) if not entry.whole else number)


def point_of(index: int, nodes: tuple[tuple[str, Node], ...]) -> Point:
    """Return a trial. A digest of the values in its name keeps a changed space from continuing another's trial."""
    text = " ".join(f"{path}={inline(node.data())}" for path, node in nodes)
    return Point(index, f"{index:04}-{sha256(text.encode()).hexdigest()[:6]}", nodes)


def _wrong_key(key: str, path: str, node: Node, schema: dict[str, Any]) -> Diagnostic | None:
    if path.split(".")[0] in SHARED:
        helps = ("all trials have the same target and the same request to the scheduler",)
        return Diagnostic("R332", f"a study cannot vary `{path}`", node.key_span, helps=helps)
    sub = subschema(schema, path)
    if sub is None or is_section(sub):
        what = "is a section, not a key" if sub else "names no key of a spec"
        return Diagnostic("R331", f"`{key}` {what}", node.key_span, helps=did_you_mean(path, key_paths(schema)))
    return None


def _is_whole(sub: dict[str, Any]) -> bool:
    """Whether a key takes whole numbers and no others."""
    branches = [sub, *sub.get("anyOf", ()), *sub.get("oneOf", ())]
    kinds: set[str] = set()
    for branch in branches:
        kind = branch.get("type", [])
        kinds |= {kind} if isinstance(kind, str) else set(kind)
    return "integer" in kinds and "number" not in kinds


def _gives_whole(node: Node, given: Node | None) -> bool:
    """Whether the values of an entry are whole numbers, and the spec's own value is not a fraction."""
    found = node.find(("range",)) if isinstance(node.value, dict) else node
    items = found.value if found is not None and isinstance(found.value, list) else []
    return (
        bool(items) and all(type(item.value) is int for item in items) and not isinstance(given and given.value, float)
    )


def _entry(path: str, node: Node, whole: bool) -> tuple[Choices | Range | None, list[Diagnostic]]:
    if isinstance(node.value, list):
        return _of_list(path, node, node.value, whole)
    assert isinstance(node.value, dict), "the schema has checked the form"
    given = {key: child for key, child in node.value.items() if child.value is not None}
    choices, ends, scale = (given.get(key) for key in ("choices", "range", "scale"))
    if (choices is None) == (ends is None):
        return None, [Diagnostic("R336", f"`{path}` needs either `choices` or a `range`", node.key_span or node.span)]
    if choices is not None:
        assert isinstance(choices.value, list)
        return _of_choices(path, choices, choices.value)
    assert ends is not None
    return _of_range(path, ends, scale is not None and scale.value == "log", whole)


def _numbers(items: list[Node]) -> list[float]:
    """Return the numbers among the items."""
    values = [item.value for item in items]
    return [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]


def _of_list(path: str, node: Node, items: list[Node], whole: bool) -> tuple[Choices | Range | None, list[Diagnostic]]:
    numbers = _numbers(items)
    if whole or len(items) != 2 or len(numbers) != 2:
        return _of_choices(path, node, items)
    low, high = numbers
    if low > high:
        helps = ("a range is [low, high]; to try only the two values, write `{choices: […]}`",)
        return None, [Diagnostic("R336", f"the range of `{path}` is reversed", node.span, helps=helps)]
    return _of_range(path, node, low > 0 and high / low >= LOG_FROM, whole)


def _of_choices(path: str, node: Node, items: list[Node]) -> tuple[Choices | None, list[Diagnostic]]:
    if not items:
        return None, [Diagnostic("R336", f"`{path}` has no values to choose from", node.span)]
    first: dict[str, Node] = {}
    twice = [item for item in items if first.setdefault(repr(item.data()), item) is not item]
    found = [
        Diagnostic("R336", f"`{inline(item.data())}` is given twice as a choice of `{path}`", item.span)
        for item in twice
    ]
    return Choices(path, tuple(items)), found


def _of_range(path: str, node: Node, log: bool, whole: bool) -> tuple[Range | None, list[Diagnostic]]:
    found = list(_range_problems(path, node, log, whole))
    if found:
        return None, found
    assert isinstance(node.value, list)
    low, high = _numbers(node.value)
    return Range(path, low, high, log, whole, node), []


def _range_problems(path: str, node: Node, log: bool, whole: bool) -> Iterator[Diagnostic]:
    assert isinstance(node.value, list)
    ends = _numbers(node.value)
    if not len(ends) == len(node.value) == 2:
        yield Diagnostic("R336", f"the range of `{path}` is not [low, high], two numbers", node.span)
        return
    low, high = ends
    if low == high:
        yield Diagnostic(
            "R336",
            f"the range of `{path}` holds only one value",
            node.span,
            helps=("set the key in its section, outside of the search space",),
        )
    if low > high:
        yield Diagnostic("R336", f"the range of `{path}` is reversed", node.span, helps=("write [low, high]",))
    elif log and low <= 0:
        message = f"the range of `{path}` begins at {low:g}, and a logarithmic scale needs numbers above 0"
        yield Diagnostic("R336", message, node.span, helps=("begin above 0, or remove `scale: log`",))
    if whole and not (low.is_integer() and high.is_integer()):
        yield Diagnostic("R336", f"`{path}` takes whole numbers, but its range holds other numbers", node.span)
