"""Frozen data classes for the two sides of a comparison and for its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ratc.comparison.sizes import Row
from ratc.plan import Value
from ratc.spec.keys import Effect


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two sides of a comparison: a resolved spec, or a lock.

    A lock has no ``settings`` and no ``facts``. ``inputs`` are digests by path from the spec's folder. ``points`` are
    the values of a sweep's points by their names. ``findings`` are warnings that the side gave. ``own_code`` is the
    record of the user's own modules, by path. ``unpredicted`` says that memory would have decided a value, and that the
    prediction is missing. ``step`` is the predicted or measured time of an optimizer step, for people; empty if it is
    not known.
    """

    name: str
    target: str
    values: Mapping[str, Value]
    settings: Mapping[str, Value] = field(default_factory=dict)
    facts: Mapping[str, Value] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    ratc_version: str = ""
    points: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    own_code: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unpredicted: bool = False
    step: str = ""

    @property
    def is_lock(self) -> bool:
        """Whether only a lock is known, and not its spec."""
        return not self.settings


@dataclass(frozen=True, slots=True)
class Change:
    """One path whose value differs; ``old`` or ``new`` is None if that side does not have it.

    ``path`` is a plan's path, or begins with ``spec:`` or ``facts:``. ``causes`` are the paths of the changes that it
    follows from directly. ``formerly`` is the path that an unchanged value had before.
    """

    path: str
    old: Value | None
    new: Value | None
    effects: tuple[Effect, ...]
    meaning: str = ""
    causes: tuple[str, ...] = ()
    formerly: str | None = None

    @property
    def name(self) -> str:
        """The path without its kind."""
        return self.path.removeprefix("spec:").removeprefix("facts:")


@dataclass(frozen=True, slots=True)
class Amount:
    """A sum for reviewers, on both sides; None if a side does not have it."""

    what: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between two sides.

    ``sources`` are the changes by people or hardware, ``changes`` their consequences in the plan (both in the plan's
    order), ``outside_plan`` other possible causes: target, ratc's version, inputs. ``sizes`` are the rows of an elastic
    plan if one of them differs, and ``columns`` the words over their cells.
    """

    old: Side
    new: Side
    sources: tuple[Change, ...] = ()
    changes: tuple[Change, ...] = ()
    outside_plan: tuple[Change, ...] = ()
    amounts: tuple[Amount, ...] = ()
    remarks: tuple[str, ...] = ()
    sizes: tuple[Row, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is no difference of interest to a reviewer."""
        return not (self.sources or self.changes or self.outside_plan)

    @property
    def effects(self) -> tuple[Effect, ...]:
        """Every effect that some change has, the worst first."""
        seen = {effect for change in (*self.sources, *self.changes, *self.outside_plan) for effect in change.effects}
        return tuple(effect for effect in Effect if effect in seen)
