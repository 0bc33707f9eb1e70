"""The trace of a step that recomputes some blocks of the model in backward, put together from two other traces.

One of the two keeps everything, the other recomputes every block (`torch.utils.checkpoint`, non-reentrant). A call of a
recomputed block keeps only its outputs, and its inputs until its backward has ended. Before its backward begins, the
call repeats its allocations, up to the last one that backward reads. The second trace says when each of them is freed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from ratc.memory.choose import Traces, Variant
from ratc.memory.trace import KINDS, Span, Trace

_TEMPORARY = KINDS.index("temporary")


def recomputed(plain: Trace, everything: Trace, names: Collection[str]) -> Trace:
    """Return the trace of the step ``plain`` with the blocks of these names recomputed; ``everything`` is the trace of
    the same step with every block recomputed.

    The new trace has the kernels (`work`) of the plain step, so it does not count the time of recomputing.
    """
    if not names:
        return plain
    return _Recomputation(plain, everything, names).made()


def kept(trace: Trace) -> dict[str, set[int]]:
    """Return the numbers of the allocations that each block keeps for backward, without its outputs, by its name."""
    ops = trace.program.ops
    ends = {~op: at for at, op in enumerate(ops) if op < 0}
    found: dict[str, set[int]] = {}
    for span in trace.blocks:
        made = {op for op in ops[slice(*span.forward)] if op >= 0 and span.backward[0] <= ends.get(op, -1)}
        found.setdefault(span.name, set()).update(made.difference(span.outputs))
    return found


@dataclass(frozen=True, slots=True)
class _Assumed:
    """The traces of a step that recomputes some blocks, made from those of the steps without and with all blocks."""

    plain: Traces
    everything: Traces
    names: tuple[str, ...]

    def trace(self, accumulating: bool, one_sample: bool) -> Trace:
        """Return a trace as `ratc.memory.choose.Traces` describes it."""
        plain, everything = (traces.trace(accumulating, one_sample) for traces in (self.plain, self.everything))
        return recomputed(plain, everything, self.names)


class Assumed(Mapping[Variant, Traces]):
    """The traces of a library. Those of variants that recompute some blocks are put together, not traced."""

    def __init__(self, library: Mapping[Variant, Traces]) -> None:
        self._library = library

    def __getitem__(self, wanted: Variant) -> Traces:
        names = wanted.activation_checkpointing
        if isinstance(names, bool):
            return self._library[wanted]
        plain, everything = (self._library[replace(wanted, activation_checkpointing=all_)] for all_ in (False, True))
        return _Assumed(plain, everything, names)

    def __iter__(self) -> Iterator[Variant]:
        return iter(self._library)

    def __len__(self) -> int:
        return len(self._library)


class _Recomputation:
    """The changes of a program: the allocations and frees to insert before an op, and when each allocation is freed.

    `old` and `ends` are indices in the program's ops by allocation, before and after the changes.
    """

    def __init__(self, plain: Trace, everything: Trace, names: Collection[str]) -> None:
        program = plain.program
        self.trace, self.ops = plain, program.ops
        self.everything = everything.program.ops
        self.old = {~op: at for at, op in enumerate(program.ops) if op < 0}
        self.ends = dict(self.old)
        self.inserted: dict[int, list[int]] = {}
        self.fixed, self.slope = list(program.fixed), list(program.slope)
        self.kind, self.module = list(program.kind), list(program.module)
        self.phase = list(plain.phase)
        self.scratch, self.optional = dict(program.scratch), set(program.optional)
        alike = [span.name for span in plain.blocks] == [span.name for span in everything.blocks]
        others: Collection[Span | None] = everything.blocks if alike else (None,) * len(plain.blocks)
        pairs = zip(plain.blocks, others, strict=True)
        self.spans = [(span, other) for span, other in pairs if span.name in names]
        self.given = {op for span, _ in self.spans for op in span.inputs}

    def made(self) -> Trace:
        for span, other in self.spans:
            self._recompute(span, other)
        for span, _ in self.spans:
            for op in span.inputs:
                if span.forward[0] <= self.old.get(op, -1) and self.ends[op] < span.backward[1]:
                    self.ends[op] = span.backward[1]
        return self._program()

    def _recompute(self, span: Span, other: Span | None) -> None:
        (begin, end), back = span.forward, span.backward[0]
        kept = {op for op in self.ops[begin:end] if op >= 0 and back <= self.old.get(op, -1)}
        if not kept:
            return
        within = self._frees(span.forward, 0, other.forward) if other else {}
        for op in kept:
            self.ends[op] = back if op in span.outputs or op in self.given else within.get(op, end)
        # Recomputing stops at the last tensor that backward reads.
        last = max(at for at in range(begin, end) if self.ops[at] in kept)
        again: list[int] = []
        copies: dict[int, int] = {}
        alive: dict[int, int] = {}
        for op in self.ops[begin : last + 1]:
            if op >= 0 and op in self.old:  # a library's workspace stays
                copies[op] = alive[op] = self._copy(op)
                again.append(copies[op])
            elif op < 0 and ~op in alive:
                again.append(~alive.pop(~op))
        freed = self._frees(span.backward, len(copies), other.backward) if other else {}
        numbers = list(copies)
        ends = {numbers[~number]: at for number, at in freed.items() if number < 0}
        for op, copy in alive.items():
            until = ends.get(op, self.old[op])
            if op in kept and until > back:
                self.ends[copy] = until
            else:
                again.append(~copy)
        self.inserted[back] = [*self.inserted.get(back, []), *again]

    def _frees(self, ours: tuple[int, int], more: int, theirs: tuple[int, int]) -> dict[int, int]:
        """Return when each allocation of a call is freed within the call in the other trace, as the index of the op of
        this trace before which it is freed. Empty if the calls differ.

        ``ours`` and ``theirs`` are the bounds of the call in the ops of both traces. In the other trace the call makes
        ``more`` allocations first, which have the keys ~0, ~1, ….
        """
        made = [(at, op) for at, op in enumerate(self.ops[slice(*ours)], ours[0]) if op >= 0]
        there = self.everything[slice(*theirs)]
        numbers = [~number for number in range(more)] + [op for _, op in made]
        places = dict(zip((op for op in there if op >= 0), numbers, strict=False))
        if sum(op >= 0 for op in there) != len(numbers):
            return {}
        found: dict[int, int] = {}
        count = 0
        for op in there:
            count += op >= 0
            if op < 0 and ~op in places:
                at = max(0, count - more)
                found[places[~op]] = made[at][0] if at < len(made) else ours[1]
        return found

    def _copy(self, op: int) -> int:
        copy = len(self.phase)
        self.fixed.append(self.fixed[op])
        self.slope.append(self.slope[op])
        self.kind.append(_TEMPORARY)
        self.module.append(self.module[op])
        self.phase.append(self.trace.phases.index("backward"))
        if op in self.scratch:
            self.scratch[copy] = self.scratch[op]
        if op in self.optional:
            self.optional.add(copy)
        return copy

    def _program(self) -> Trace:
        program = self.trace.program
        moved: dict[int, list[int]] = {}
        for op, at in self.ends.items():
            if self.old.get(op) != at:
                moved.setdefault(at, []).append(~op)
        steps = set(self.trace.steps)
        ops: list[int] = []
        places: dict[int, int] = {}
        for at in range(len(program.ops) + 1):
            if at in steps:
                places[at] = len(ops)
            # What ends here goes before what is computed again.
            ops += moved.get(at, [])
            ops += self.inserted.get(at, [])
            ops += [op for op in program.ops[at : at + 1] if op >= 0 or self.old[~op] == self.ends[~op]]
        now = tuple(places[at] for at in self.trace.steps)
        changed = replace(
            program,
            ops=ops,
            fixed=self.fixed,
            slope=self.slope,
            kind=self.kind,
            module=self.module,
            start=now[-1],
            first=now[0],
            scratch=self.scratch,
            optional=frozenset(self.optional),
        )
        return replace(self.trace, program=changed, phase=self.phase, steps=now, blocks=())
