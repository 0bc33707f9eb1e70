"""One rank's whole step as a program: the traced events with what its engine adds and takes away."""

from __future__ import annotations

from ratc.memory.trace import KINDS, Program, Trace
from ratc.memory.zero import Block, Layout

#: The trace's kinds and one more: an engine's communication buffers.
ALL_KINDS = (*KINDS, "bucket")
_PARAMETER, _GRADIENT = KINDS.index("parameter"), KINDS.index("gradient")


def compose(trace: Trace, layout: Layout) -> Program:
    """The program of a trace under a layout. Frees of blocks that the layout frees itself are dropped."""
    return _Composer(trace, layout).run()


class _Composer:
    def __init__(self, trace: Trace, layout: Layout) -> None:
        self.trace, self.layout = trace, layout
        source = trace.program
        self.source = source
        self.ops: list[int] = []
        self.fixed, self.slope = list(source.fixed), list(source.slope)
        self.kind, self.module = list(source.kind), list(source.module)
        self.modules = list(source.modules)
        self.names = {name: number for number, name in enumerate(self.modules)}
        self.live: set[int] = set()
        self.backward: list[int] = []
        self.pending: list[int] = []
        self.pending_bytes = 0.0
        self.gradients: list[int] = []
        self.gathered: list[int] = []

    def run(self) -> Program:
        phases, source = self.trace.phases, self.source
        first, last = self.trace.steps[0], self.trace.steps[-1]
        starts = frozenset(self.trace.steps)
        phase, stepping, start = "", False, 0
        marks: list[tuple[int, str]] = []
        for index, op in enumerate(source.ops):
            if index in starts:
                self._leave(phase)
                if stepping:
                    self._update()
                phase, stepping = "", True
                if index == last:
                    start = len(self.ops)
                if index == first:
                    for block in self.layout.persistent:
                        self._add(block)
                if self.layout.parameters == "gathered":
                    self._gather()
            if op < 0:
                self._free(~op)
                continue
            now = phases[self.trace.phase[op]]
            if now != phase and stepping:
                self._leave(phase)
                if now == "backward":
                    self.backward = [self._add(block) for block in self.layout.backward]
                if index >= last:
                    marks.append((len(self.ops), now))
                phase = now
            self._malloc(op, stepping)
        if stepping:
            self._leave(phase)
            self._update()
        tables = ALL_KINDS, tuple(self.modules)
        columns = self.ops, self.fixed, self.slope, self.kind, self.module
        return Program(*columns, *tables, start, tuple(marks), source.scratch, source.processors)

    def _malloc(self, op: int, stepping: bool) -> None:
        kind = self.kind[op]
        if kind == _PARAMETER and self.layout.parameters != "kept" and not stepping:
            if self.layout.parameters == "gathered":
                self.gathered.append(op)
            return
        self.live.add(op)
        self.ops.append(op)
        if kind != _GRADIENT or self.layout.gradients == "traced":
            return
        self.gradients.append(op)
        if self.layout.gradients == "reduced":
            self.pending.append(op)
            self.pending_bytes += self.fixed[op]
            if self.pending_bytes > self.layout.pending_bytes:
                self._reduce(all_but=op)

    def _free(self, op: int) -> None:
        # A gradient that the engine owns outlives the trace's own zero_grad, and is freed by the engine.
        if op in self.live and not (self.layout.gradients == "until_update" and self.kind[op] == _GRADIENT):
            self.live.discard(op)
            self.ops.append(~op)

    def _reduce(self, all_but: int | None = None) -> None:
        for op in self.pending:
            if op != all_but:
                self._free(op)
        self.pending = [] if all_but is None else [all_but]
        self.pending_bytes = 0.0 if all_but is None else self.fixed[all_but]

    def _leave(self, phase: str) -> None:
        if phase != "backward":
            return
        self._reduce()
        for op in self.backward:
            self._drop(op)
        self.backward = []

    def _update(self) -> None:
        for op in self.gathered:
            self._drop(op)
        for op in [self._add(block) for block in self.layout.update]:
            self._drop(op)
        for op in self.gradients:
            self._drop(op)
        self.gradients = []

    def _gather(self) -> None:
        for op in self.gathered:
            self.live.add(op)
            self.ops.append(op)

    def _drop(self, op: int) -> None:
        if op in self.live:
            self.live.discard(op)
            self.ops.append(~op)

    def _add(self, block: Block) -> int:
        name = f"({block.name})"
        if name not in self.names:
            self.names[name] = len(self.modules)
            self.modules.append(name)
        op = len(self.fixed)
        self.fixed.append(float(block.bytes_))
        self.slope.append(0.0)
        self.kind.append(ALL_KINDS.index(block.kind))
        self.module.append(self.names[name])
        self.live.add(op)
        self.ops.append(op)
        return op
