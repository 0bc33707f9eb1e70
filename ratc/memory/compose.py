"""One rank's whole step as a program: the traced events with those that its engine adds and removes."""

from __future__ import annotations

from dataclasses import replace

from ratc.memory.fsdp2_events import FullyShard
from ratc.memory.trace import KINDS, Program, Trace
from ratc.memory.zero import Layout
from ratc.memory.zero_events import Engine, StagesOneAndTwo, StageThree, Unpartitioned

#: The trace's kinds and one more: an engine's communication buffers.
ALL_KINDS = (*KINDS, "bucket")
_GRADIENT = KINDS.index("gradient")


def compose(trace: Trace, layout: Layout) -> Program:
    """Return the program of a trace under a layout. The layout's engine frees its own blocks."""
    return _Composer(trace, layout).run()


class _Composer:
    """Follows the trace and tells the engine its position; the engine allocates and frees through `add` and `drop`."""

    def __init__(self, trace: Trace, layout: Layout) -> None:
        self.trace = trace
        source = trace.program
        self.source = source
        self.ops: list[int] = []
        self.fixed, self.slope = list(source.fixed), list(source.slope)
        self.kind, self.module = list(source.kind), list(source.module)
        self.modules = list(source.modules)
        self.names = {name: number for number, name in enumerate(self.modules)}
        self.live: set[int] = set()
        self.streams: dict[int, int] = {}
        self.flushes: set[int] = set()
        self.moves: dict[int, int] = {}
        self.engine = _engine(self, layout)
        self.gradients: dict[int, None] = {}  # of this backward pass, those that were not handed to the engine yet
        self.passes = 0

    def run(self) -> Program:
        phases, source = self.trace.phases, self.source
        first, last = self.trace.steps[0], self.trace.steps[-1]
        starts = frozenset(self.trace.steps)
        most = self._passes()
        phase, stepping, begin, start = "", False, 0, 0
        marks: list[tuple[int, str]] = []
        for index, op in enumerate(source.ops):
            if index in starts:
                self._leave(phase, most)
                if stepping:
                    self.engine.update()
                phase, stepping, self.passes = "", True, 0
                if index == first:
                    self.engine.built()
                    begin = len(self.ops)
                if index == last:
                    start = len(self.ops)
                self.engine.step()
            if op < 0:
                self._free(~op, phase)
                continue
            now = phases[self.trace.phase[op]]
            if now != phase and stepping:
                self._leave(phase, most)
                if index >= last:
                    marks.append((len(self.ops), now))
                phase = now
            if self.engine.watches:
                self.engine.allocated(op, ALL_KINDS[self.kind[op]], now, self.modules[self.module[op]])
            self.live.add(op)
            self.ops.append(op)
            if stepping and self.kind[op] == _GRADIENT:
                self.gradients[op] = None
        if stepping:
            self._leave(phase, most)
            self.engine.update()
        tables = ALL_KINDS, tuple(self.modules)
        columns = self.ops, self.fixed, self.slope, self.kind, self.module
        program = Program(*columns, *tables, start, begin, tuple(marks), source.scratch, source.processors)
        return replace(
            program, streams=self.streams, flushes=frozenset(self.flushes), moves=self.moves, optional=source.optional
        )

    def _passes(self) -> int:
        """Backward passes of a step."""
        found, before = 0, ""
        for op in self.source.ops[self.trace.steps[0] : (*self.trace.steps, len(self.source.ops))[1]]:
            now = self.trace.phases[self.trace.phase[op]] if op >= 0 else before
            found += now == "backward" != before
            before = now
        return found

    def _free(self, op: int, phase: str) -> None:
        if op not in self.live:
            return
        if op in self.gradients and phase == "backward":
            del self.gradients[op]
            self.engine.gradient(op, self.passes)
        elif self.kind[op] != _GRADIENT or not self.engine.owns_gradients:
            self.gradients.pop(op, None)
            self.drop(op)

    def _leave(self, phase: str, most: int) -> None:
        if phase != "backward":
            return
        for op in self.gradients if self.engine.owns_gradients else ():
            self.engine.gradient(op, self.passes)
        self.gradients = {}
        self.passes += 1
        self.engine.backward_ended(last=self.passes >= most)

    def again(self, op: int) -> None:
        """Allocate a traced block that was freed once more."""
        self.live.add(op)
        self.ops.append(op)

    def drop(self, op: int) -> None:
        """Free a block, if it is alive."""
        if op in self.live:
            self.live.discard(op)
            self.ops.append(~op)

    def flush(self) -> None:
        """Empty the allocator's cache here."""
        self.flushes.add(len(self.ops))

    def add(self, name: str, kind: str, size: int, stream: int = 0) -> int:
        """Allocate a block of the engine's own; return its number."""
        name = f"({name})"
        if name not in self.names:
            self.names[name] = len(self.modules)
            self.modules.append(name)
        op = len(self.fixed)
        self.fixed.append(float(size))
        self.slope.append(0.0)
        self.kind.append(ALL_KINDS.index(kind))
        self.module.append(self.names[name])
        if stream:
            self.streams[op] = stream
        self.again(op)
        return op

    def replace(self, name: str, kind: str, size: int, blocks: tuple[int, ...]) -> int:
        """Allocate a block that takes the place of others, which are moved to the host if the card has no room."""
        at = len(self.ops)
        op = self.add(name, kind, size)
        for block in blocks:
            self.drop(block)
        self.moves[at] = len(self.ops) - at - 1
        return op


def _engine(composer: _Composer, layout: Layout) -> Engine:
    strategy = layout.strategy
    if strategy.engine == "fsdp2":
        return FullyShard(composer, layout)
    if strategy.engine == "torch":
        return Engine(composer, layout)
    return (Unpartitioned, StagesOneAndTwo, StagesOneAndTwo, StageThree)[strategy.zero_stage](composer, layout)
