"""The traces of a plan's variants for a search: each is fetched at the first use, and then kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ratc.console import say
from ratc.diagnostics import Diagnostic, Span
from ratc.memory.choose import Traces, Untraceable, Variant
from ratc.memory.request import request
from ratc.memory.trace import Trace
from ratc.plan import Plan
from ratc.tracing import fetch


class NoTrace(Untraceable):
    """A trace that a search needs cannot be made. ``found`` are the diagnostics with the reason."""

    def __init__(self, found: tuple[Diagnostic, ...]) -> None:
        self.found = found


class _Fetched:
    """The traces of a variant, each fetched when it is first needed."""

    def __init__(self, plan: Plan, wanted: Variant, folder: str, span: Span | None) -> None:
        self._plan, self._variant, self._folder, self._span = plan, wanted, folder, span
        self._traces: dict[tuple[bool, bool], Trace] = {}

    def trace(self, accumulating: bool, one_sample: bool) -> Trace:
        """Return a trace as `ratc.memory.choose.Traces` describes it. Raises NoTrace."""
        key = accumulating, one_sample
        if key not in self._traces:
            asked = request(self._plan, self._variant, 2 if accumulating else 1, one_sample)
            trace, found = fetch.fetch(asked, self._folder, self._place, _progress)
            if trace is None:
                raise NoTrace(found)
            self._traces[key] = trace
        return self._traces[key]

    def _place(self, key: str) -> Span | None:
        given = self._plan.settings.get(key) if self._span else None
        return given.span if given and given.span else self._span


class Library(Mapping[Variant, Traces]):
    """The traces of every variant of a plan. A search looks for ways out only among the variants in ``known``, which
    iteration yields.
    """

    def __init__(self, plan: Plan, folder: str, span: Span | None) -> None:
        self._plan, self._folder, self._span = plan, folder, span
        self._fetched: dict[Variant, Traces] = {}
        self.known: list[Variant] = []

    def __getitem__(self, wanted: Variant) -> Traces:
        if wanted not in self._fetched:
            self._fetched[wanted] = _Fetched(self._plan, wanted, self._folder, self._span)
        return self._fetched[wanted]

    def __iter__(self) -> Iterator[Variant]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _progress(line: str) -> None:
    say(f"ratc: {line} …")
