"""Settings whose `resources.nodes` is a range: a job that takes as many nodes as it is given.

``resources.nodes`` is the most nodes for every reader; those that know of the range ask here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ratc.plan import Value, Values

NODES, FEWEST = "resources.nodes", "resources.nodes.min"


def settled(settings: Values) -> Values:
    """Return valid settings with the most nodes as `resources.nodes`, and the fewest beside it if they differ."""
    given = settings[NODES]
    if not isinstance(given.value, dict):
        return settings
    fewest, most = (replace(given, value=given.value[end]) for end in ("min", "max"))
    told: dict[str, Value] = {}
    for path, value in settings.items():
        told[path] = value
        if path == NODES:
            told[NODES] = most
            if fewest.value != most.value:
                told[FEWEST] = fewest
    return Values(told)


def as_given(settings: Values, path: str) -> Any:
    """Return the value at a path as a spec writes it: the nodes as a range, if they are one."""
    value = settings[path].value
    return {"min": settings[FEWEST].value, "max": value} if path == NODES and is_range(settings) else value


def is_range(settings: Values) -> bool:
    """Whether `resources.nodes` is a range of more than one number of nodes."""
    return FEWEST in settings


def fewest(settings: Values) -> int:
    """Return the smallest number of nodes on which the job can run."""
    return settings.get_as(int, FEWEST if is_range(settings) else NODES)


def at(settings: Values, nodes: int) -> Values:
    """Return the settings of a range for one of its numbers of nodes. `is_range` still holds for them."""
    return Values({**settings, NODES: replace(settings[NODES], value=nodes)})
