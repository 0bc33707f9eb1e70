"""The plan: every value of a run, with its origin and reason. `explain` and the lock's comments read this."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, cast

from ratc.diagnostics import Span
from ratc.units import counted, either

Origin: TypeAlias = Literal["default", "spec", "layer", "hardware", "cluster", "derived"]
#: The origins of values that a person gave.
GIVEN = ("spec", "layer")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Value:
    """One value with its provenance.

    ``reason`` is one line for people; ``inputs`` are the paths of the settings, facts and plan values it was made from.
    """

    value: Any
    origin: Origin
    reason: str = ""
    inputs: tuple[str, ...] = ()
    span: Span | None = None


class Values(Mapping[str, Value]):
    """A frozen mapping of dotted paths to values, in a stable order."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def __getitem__(self, path: str) -> Value:
        return self._values[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    # Those of Mapping would look every path up again; a sweep of 10,000 points asks for millions.
    def __contains__(self, path: object) -> bool:
        return path in self._values

    def keys(self) -> KeysView[str]:
        """The paths."""
        return self._values.keys()

    def values(self) -> ValuesView[Value]:
        """The values, in the order of the paths."""
        return self._values.values()

    def items(self) -> ItemsView[str, Value]:
        """The paths with their values."""
        return self._values.items()

    def get_as(self, kind: type[T], path: str) -> T:
        """Return the bare value at ``path``. Raises TypeError for another type: a bug in ratc."""
        value = self[path].value
        if not isinstance(value, kind):
            raise TypeError(f"{path} is {value!r}, not a {kind.__name__}")
        return value

    def maybe(self, kind: type[T], path: str) -> T | None:
        """As :meth:`get_as`, with None allowed."""
        return None if self[path].value is None else self.get_as(kind, path)

    def number(self, path: str) -> float:
        """The number at ``path``, an integer or not."""
        return float(cast(float, self[path].value))

    def given(self, path: str) -> bool:
        """Whether a person gave the value, rather than a default."""
        return self[path].origin in GIVEN


def job_variables(settings: Values, facts: Values) -> dict[str, str]:
    """The variables of a job's environment: those of the cluster's facts and, over them, the spec's."""
    cluster, own = facts.get("cluster.variables"), settings["environment.variables"]
    given = {**(cluster.value if cluster is not None else {}), **(own.value or {})}
    return {name: str(value) for name, value in given.items()}


@dataclass(frozen=True, slots=True)
class Plan:
    """A resolved run: the values of the lock (``values``), and its inputs (``settings`` and ``facts``)."""

    values: Values
    settings: Values
    facts: Values = field(default_factory=lambda: Values({}))
    #: Of an elastic plan, whose values are those of the most nodes: the plans of all node counts, the fewest first.
    sizes: tuple[Plan, ...] = ()
    #: Of a program of one's own, the plan of the built-in loop that makes the step which its spec describes.
    step: Plan | None = None

    @property
    def traced(self) -> Plan:
        """The plan whose step is traced to predict memory and time: the plan itself, unless a program trains."""
        return self.step or self

    @property
    def fewest(self) -> Plan:
        """The plan of the fewest nodes, whose processes have the most to hold: the plan itself unless it is elastic."""
        return self.sizes[0] if self.sizes else self

    @property
    def node_counts(self) -> list[int]:
        """The numbers of nodes that a job may get, the fewest first; one number unless the plan is elastic."""
        return [plan.values.get_as(int, "parallel.nodes") for plan in self.sizes or (self,)]

    @property
    def nodes_text(self) -> str:
        """``1 node``; of an elastic plan ``2, 4 or 8 nodes``."""
        if self.sizes:
            return f"{either(list(map(str, self.node_counts)))} nodes"
        return counted(self.node_counts[0], "node")

    @property
    def variables(self) -> dict[str, str]:
        """The variables of a job's environment that the cluster's facts and the spec set."""
        return job_variables(self.settings, self.facts)

    def lookup(self, path: str) -> Value | None:
        """The value behind an input path: ``spec:…`` and ``facts:…`` name the inputs, anything else the plan."""
        kind, _, rest = path.partition(":")
        if kind == "spec":
            return self.settings.get(rest)
        if kind == "facts":
            return self.facts.get(rest)
        return self.values.get(path)
