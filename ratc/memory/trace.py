"""The trace file (docs/reference/trace.md) as checked, flat lists: the input of every calculation here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ratc.memory.convolutions import Convolution, Direction, described
from ratc.memory.scratch import LARGEST, PROCESSORS, Processors, Scratch, read
from ratc.memory.scratch import processors as of_capability
from ratc.memory.work import Kernel
from ratc.memory.work import read as read_work

VERSION = 4
#: Parts that the runtime may have estimated.
ESTIMATES = ("convolutions", "recurrent", "fused", "compiled", "uncompiled")
KINDS = ("parameter", "buffer", "gradient", "optimizer", "input", "activation", "temporary", "workspace")


class BadTrace(ValueError):
    """A trace that does not have the format of docs/reference/trace.md."""


@dataclass(frozen=True, slots=True)
class Program:
    """Allocations and frees in order. ``ops`` holds n for allocation n and ~n for its free.

    Allocation n takes ``fixed[n] + slope[n] x micro-batch`` bytes, or those of ``scratch[n]`` for ``processors``;
    ``kind`` and ``module`` index ``kinds`` and ``modules``. ``start`` is the index in ``ops`` of the last traced step,
    which has the timeline of all later steps; ``first`` is that of the first step. ``marks`` are the indices in
    ``ops`` at which the last step's phases begin, each with the phase (once composed).

    ``streams`` are the allocations on another stream than the default one, with its number. ``flushes`` are the indices
    in ``ops`` before which the cache is emptied. ``moves`` are the indices of allocations that only happen on the card
    if it has room for them beside the blocks freed right after, whose number it gives; else those go first. With half
    of an ``optional`` allocation a step runs, too, if more slowly.
    """

    ops: list[int]
    fixed: list[float]
    slope: list[float]
    kind: list[int]
    module: list[int]
    kinds: tuple[str, ...]
    modules: tuple[str, ...]
    start: int
    first: int = 0
    marks: tuple[tuple[int, str], ...] = ()
    scratch: Mapping[int, Scratch] = field(default_factory=dict)
    processors: Processors = PROCESSORS["9.0"]
    streams: Mapping[int, int] = field(default_factory=dict)
    flushes: frozenset[int] = frozenset()
    moves: Mapping[int, int] = field(default_factory=dict)
    optional: frozenset[int] = frozenset()
    _sizes: dict[int, tuple[int, ...]] = field(init=False, default_factory=dict, repr=False, compare=False)

    def sizes(self, micro_batch: int, slower: Iterable[int] = ()) -> list[int]:
        """Bytes that every allocation asks for at a micro-batch size; the allocations ``slower`` for half of that."""
        if micro_batch not in self._sizes:
            self._sizes[micro_batch] = self._full_sizes(micro_batch)
        sizes = list(self._sizes[micro_batch])
        for number in slower:
            sizes[number] //= 2
        return sizes

    def _full_sizes(self, micro_batch: int) -> tuple[int, ...]:
        sizes = [round(a + b * micro_batch) for a, b in zip(self.fixed, self.slope, strict=True)]
        for number, scratch in self.scratch.items():
            sizes[number] = scratch.bytes_(micro_batch, self.processors)
        return tuple(sizes)

    def freed_first(self, index: int) -> Program:
        """The program with the blocks of one of its ``moves`` freed before the allocation, and the cache emptied."""
        end = index + self.moves[index]
        ops = [*self.ops[:index], *self.ops[index + 1 : end + 1], self.ops[index], *self.ops[end + 1 :]]
        moves = {place: count for place, count in self.moves.items() if place != index}
        return replace(self, ops=ops, moves=moves, flushes=self.flushes | {end})


@dataclass(frozen=True, slots=True)
class Span:
    """A call of a block, which may be recomputed in backward: an element of a list of modules.

    ``forward`` and ``backward`` are the index of the first op and the one after the last, in a program's ``ops``;
    ``inputs`` and ``outputs`` are allocations; ``launches`` are launches of each row of the trace's ``work`` in
    forward.
    """

    name: str
    forward: tuple[int, int]
    backward: tuple[int, int]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    launches: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced step: the program of one process that shares nothing, with the phase of every allocation.

    ``steps`` are indices into ``program.ops``. ``count`` and ``trainable`` are elements of parameters. ``estimates``
    names the parts that were estimated, not followed, as in docs/reference/trace.md. ``groups`` are the optimizer's
    group of each parameter, in the order of their allocation: even (decayed), odd (not), -1 (not trained). ``work``
    are the kernels of a step of ``micro_batches`` micro-batches; it is empty if they are not known.
    """

    program: Program
    phase: list[int]
    phases: tuple[str, ...]
    steps: tuple[int, ...]
    count: int
    trainable: int
    parameter_bytes: int
    torch: str
    estimates: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    work: tuple[Kernel, ...] = ()
    micro_batches: int = 1
    #: The class of each module with parameters, by its name, and the classes of repeated layers (`engine/units.py`).
    classes: Mapping[str, str] = field(default_factory=dict)
    wrap: tuple[str, ...] = ()
    #: The calls of blocks, in order.
    blocks: tuple[Span, ...] = ()

    def convolutions(self, micro_batch: int) -> list[tuple[Convolution, Direction]]:
        """The passes of all convolutions at a micro-batch."""
        scratch = self.program.scratch.values()
        return [described(one.numbers(micro_batch)) for one in scratch if one.rule == "convolution"]


def parse(data: Any) -> Trace:
    """The trace in a parsed JSON file. Raises BadTrace, with the first thing that is wrong."""
    if not isinstance(data, Mapping):
        raise BadTrace("not an object")
    if data.get("trace_version") != VERSION:
        raise BadTrace(f"version {data.get('trace_version')!r}, not {VERSION}")
    try:
        tables = [tuple(str(name) for name in data[table]) for table in ("phases", "modules", "kinds")]
        counts = [int(data["parameters"][key]) for key in ("count", "trainable", "bytes")]
        steps, events = [int(step) for step in data["steps"]], data["events"]
        torch = str(data["torch"])
        estimates = tuple(str(name) for name in data["estimates"])
        uneven = {number: read(rest) for number, *rest in data["scratch"]}
        optional = frozenset(int(number) for number in data["optional"])
        processors = of_capability(str(data["request"].get("compute_capability", "9.0")))
        micro_batches = 2 if data["request"].get("accumulation", 1) == 2 else 1
        work = read_work(data["work"], len(tables[0]))
        classes = {str(name): str(of) for name, of in data.get("classes", {}).items()}
        wrap = tuple(str(name) for name in data.get("wrap", ()))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise BadTrace(f"{type(error).__name__}: {str(error)[:80]}") from error
    phases, modules, kinds = tables
    if not set(estimates) <= set(ESTIMATES):
        raise BadTrace(f"estimates {', '.join(estimates)}")
    if "convolutions" not in estimates and any(one.rule == "convolution" for one in uneven.values()):
        raise BadTrace("convolutions that `estimates` does not name")
    if kinds != KINDS:
        raise BadTrace(f"kinds {', '.join(kinds) or 'missing'}")
    if not steps or not isinstance(events, list) or sorted({*steps, 0, len(events)})[-1] != len(events):
        raise BadTrace("steps outside the events")
    if not 0 <= counts[1] <= counts[0]:
        raise BadTrace("more trainable parameters than parameters")
    ops, columns, numbers = _events(events, (len(phases), len(modules), len(kinds)))
    fixed, slope, phase, module, kind = columns
    if not optional.union(uneven) <= numbers.keys():
        raise BadTrace("blocks that are never allocated")
    scratch = {numbers[number]: one for number, one in uneven.items()}
    program = Program(ops, fixed, slope, kind, module, kinds, modules, steps[-1], steps[0], (), scratch, processors)
    program = replace(program, optional=frozenset(numbers[number] for number in optional))
    groups = _groups(data["parameters"], program, steps[0])
    blocks = _spans(data.get("blocks", []), numbers, len(ops), work)
    return Trace(
        program,
        phase,
        phases,
        tuple(steps),
        counts[0],
        counts[1],
        counts[2],
        torch,
        estimates,
        groups,
        work,
        micro_batches,
        classes,
        wrap,
        blocks,
    )


def _spans(entries: Any, numbers: Mapping[int, int], count: int, work: tuple[Kernel, ...]) -> tuple[Span, ...]:
    if not isinstance(entries, list):
        raise BadTrace("`blocks` is not a list")
    found = []
    for entry in entries:
        try:
            name, (begin, end, back, after), inputs, outputs, rows = entry
            launches = {int(row): int(times) for row, times in rows}
            given, made = (tuple(numbers[block] for block in blocks) for blocks in (inputs, outputs))
            if not 0 <= begin <= end <= back <= after <= count:
                raise ValueError
            if not all(row >= 0 and 0 < times <= work[row].launches for row, times in launches.items()):
                raise ValueError
            found.append(Span(str(name), (int(begin), int(end)), (int(back), int(after)), given, made, launches))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise BadTrace(f"block {str(entry)[:80]}") from error
    return tuple(found)


def _groups(parameters: Mapping[str, Any], program: Program, end: int) -> tuple[int, ...]:
    kind = KINDS.index("parameter")
    count = sum(1 for op in program.ops[:end] if op >= 0 and program.kind[op] == kind)
    groups = parameters.get("groups")
    if groups is None:
        return (0,) * count
    known = isinstance(groups, list) and all(type(group) is int and group >= -1 for group in groups)
    if not known or len(groups) != count:
        raise BadTrace(f"groups of {count} parameters: {str(groups)[:80]}")
    return tuple(groups)


def _events(events: list[Any], limits: tuple[int, int, int]) -> tuple[list[int], tuple[list[Any], ...], dict[int, int]]:
    """The ops, the columns of allocations, and the number of each of the trace's blocks among them."""
    numbers: dict[int, int] = {}
    live: dict[Any, int] = {}
    ops: list[int] = []
    fixed: list[float] = []
    slope: list[float] = []
    phase: list[int] = []
    module: list[int] = []
    kind: list[int] = []
    some_phase, some_module, some_kind = map(range, limits)
    for number, event in enumerate(events):
        try:
            if len(event) == 1:
                ops.append(~live.pop(event[0]))
                continue
            block, constant, growth, in_phase, in_module, of_kind = event
            # Traced at batch sizes from 2 on: at 1 no size may have become negative, nor with growth at any other.
            if constant + growth > LARGEST:
                raise BadTrace(f"event {number}: a tensor of more than 1 PiB")
            if block in live or not (constant + growth >= 0 and 0 <= growth <= LARGEST):
                raise ValueError
            if in_phase not in some_phase or in_module not in some_module or of_kind not in some_kind:
                raise ValueError
        except BadTrace:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise BadTrace(f"event {number}: {str(event)[:80]}") from error
        live[block] = numbers[block] = len(fixed)
        ops.append(len(fixed))
        fixed.append(constant)
        slope.append(growth)
        phase.append(int(in_phase))
        module.append(int(in_module))
        kind.append(int(of_kind))
    return ops, (fixed, slope, phase, module, kind), numbers
