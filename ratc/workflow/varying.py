"""Describes the variation of values over the points of a sweep, for `ratc explain`."""

from __future__ import annotations

from collections.abc import Sequence

from ratc import compiler
from ratc.comparison.compare import flat
from ratc.explain import decided_by_memory
from ratc.fitting.open_batch import is_open
from ratc.plan import Plan, Value, Values
from ratc.secrets.redact import shown
from ratc.sweep import Point
from ratc.workflow.inputs import Gathered
from ratc.yaml.parse import Document

#: The most points that are resolved, and the most different values that are named.
_MOST_POINTS, _MOST_VALUES = 200, 5


def remarks(
    document: Document, settings: Values, gathered: Gathered, points: Sequence[Point], paths: Sequence[str]
) -> list[str]:
    """Return one line for each value that differs between points. A value that memory decides is left out if a point
    leaves it open: each such point would need a prediction.
    """
    hardware, _ = gathered.settled(settings)
    if hardware is None or len(points) < 2:
        return []
    taken = points[:_MOST_POINTS]
    seen: dict[str, dict[str, Value]] = {}
    for point in taken:
        own, _ = compiler.check_point(document, point)
        plan = compiler.plan_on(own, hardware)[0] if own else None
        if plan is None:
            continue
        for path, value in _known_values(plan, paths):
            seen.setdefault(path, {}).setdefault(repr(value.value), value)
    among = f"the sweep's {len(points)} points"
    among = among if taken is points or len(taken) == len(points) else f"the first {len(taken)} of {among}"
    return [_line(path, list(values.values()), among) for path, values in seen.items() if len(values) > 1]


def _known_values(plan: Plan, paths: Sequence[str]) -> list[tuple[str, Value]]:
    found = {path: value for path in paths if (value := plan.lookup(path)) is not None}
    if is_open(plan.traced):
        found = {path: value for path, value in found.items() if not decided_by_memory(plan, [path])}
    return list(flat(found).items())


def _line(path: str, values: list[Value], among: str) -> str:
    path = path.removeprefix("spec:").removeprefix("facts:")
    named = ", ".join(shown(path, value.value) for value in values[:_MOST_VALUES])
    return f"{path} has {len(values)} values over {among}: {named}{', …' if len(values) > _MOST_VALUES else ''}"
