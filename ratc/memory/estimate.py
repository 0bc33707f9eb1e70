"""The estimate: a program replayed by the allocator at a card's cap, with the breakdown of the bytes at the peak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from ratc.memory.allocator import Allocator, ExpandableAllocator, OutOfMemory, rounded
from ratc.memory.compose import compose
from ratc.memory.convolutions import unmeasured
from ratc.memory.margin import Part, parts, total
from ratc.memory.terms import Device, Term, outside
from ratc.memory.trace import Program, Trace
from ratc.memory.zero import Layout, Strategy, layout


@dataclass(frozen=True, slots=True)
class Replay:
    """The result of a replay.

    ``peak`` is the index in the program's ops with the most allocated bytes, or at which memory ran out;
    ``wanted_bytes`` is then the size of the segment without room. ``retries`` counts how often the cache was emptied to
    find room. ``slower`` are the optional allocations that had room only for half of their size.
    """

    fits: bool
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    peak: int
    retries: int
    wanted_bytes: int = 0
    slower: frozenset[int] = frozenset()


#: Steps that are replayed at most. Free blocks that one step leaves change the places of the next one's blocks: an MLP
#: on an H200 reserved most in its third step. The limit itself is chosen, not measured.
MOST_STEPS = 6
#: Micro-batches at which unmeasured workspaces are looked for, since these decide the margin. Chosen: the smallest with
#: a common trace, and a large one.
FEW_AND_MANY = (2, 256)


def replay(program: Program, micro_batch: int, cap: int | None = None, expandable: bool = False) -> Replay:
    """Run a program through the allocator at a cap in bytes. Running out is a result, not an exception.

    The last step is repeated until it reserves no more than before. A convolution whose workspace finds no room is run
    by a kernel that needs less, as torch does (`try_plans` in aten/src/ATen/native/cudnn/Conv_v8.cpp), from then on:
    half, a copy of one tensor instead of two. With that, without a margin, the largest micro-batches of R3D-18, U-Net,
    ResNet-18 and ResNet-50 under 24 GiB are within 0.4 % of the ones that ran; without it, R3D-18's is 3.4 % too large.
    """
    allocator = ExpandableAllocator(cap) if expandable else Allocator(cap)
    sizes = program.sizes(micro_batch)
    addresses = [-1] * len(sizes)
    malloc, free, streams = allocator.malloc, allocator.free, program.streams
    special = program.flushes.union(program.moves)
    peak = highest = 0
    index = -1
    slower: set[int] = set()
    ops, begin = program.ops, 0
    pairs = carried(program, sizes)
    try:
        for _ in range(MOST_STEPS):
            before = allocator.reserved
            for index, op in enumerate(ops, begin):
                if index in special:
                    if index in program.flushes:
                        allocator.release_cached()
                    if index in program.moves and cap is not None and allocator.reserved + sizes[op] > cap:
                        return replay(program.freed_first(index), micro_batch, cap, expandable)
                if op >= 0:
                    if sizes[op]:
                        try:
                            addresses[op] = malloc(sizes[op], streams.get(op, 0))
                        except OutOfMemory:
                            if op not in program.optional or op in slower:
                                raise
                            slower.add(op)
                            sizes[op] //= 2
                            addresses[op] = malloc(sizes[op], streams.get(op, 0))
                        if allocator.peak_allocated > highest:
                            highest, peak = allocator.peak_allocated, index
                elif sizes[~op] and addresses[~op] >= 0:
                    free(addresses[~op])
            if pairs is None or allocator.reserved <= before:
                break
            for found, left in pairs.items():
                addresses[found] = addresses[left] if left >= 0 else -1
            ops, begin = program.ops[program.start :], program.start
    except OutOfMemory as error:
        peaks = allocator.peak_allocated, allocator.peak_reserved
        return Replay(False, *peaks, index, allocator.retries, error.wanted_bytes, frozenset(slower))
    peaks = allocator.peak_allocated, allocator.peak_reserved
    return Replay(True, *peaks, peak, allocator.retries, slower=frozenset(slower))


def carried(program: Program, sizes: Sequence[int]) -> dict[int, int] | None:
    """Return the allocations from before the last step that it frees, each with the allocation of the same size and
    stream that the step leaves for the next one to free; -1 if it leaves none.

    None if the step leaves an allocation that the next step would not free: it cannot be repeated.
    """
    last = program.ops[program.start :]
    made, freed = {op for op in last if op >= 0}, {~op for op in last if op < 0}
    left: dict[tuple[int, int], list[int]] = {}
    for number in sorted(made - freed, reverse=True):
        left.setdefault((sizes[number], program.streams.get(number, 0)), []).append(number)
    pairs = {}
    for number in sorted(freed - made):
        alike = left.get((sizes[number], program.streams.get(number, 0)))
        pairs[number] = alike.pop() if alike else -1
    return None if any(left.values()) else pairs


def live_peak(program: Program, micro_batch: int) -> int:
    """The most bytes alive at once, each rounded to 512: no cap below this can do. Ten times as fast as a replay."""
    for index in program.moves:
        program = program.freed_first(index)
    sizes = [(size + 511) & -512 for size in program.sizes(micro_batch, program.optional)]
    return max(accumulate([sizes[op] if op >= 0 else -sizes[~op] for op in program.ops]), default=0)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Bytes alive at one moment, rounded as allocated, by kind, by module, and by both."""

    by_kind: Mapping[str, int]
    by_module: Mapping[str, int]
    by_both: Mapping[tuple[str, str], int]

    def largest(self, count: int = 3) -> tuple[tuple[str, int], ...]:
        """Return the modules with the most bytes, and these bytes, largest first; equal ones by name."""
        return tuple(sorted(self.by_module.items(), key=lambda item: (-item[1], item[0]))[:count])


def breakdown(program: Program, micro_batch: int, index: int, slower: Iterable[int] = ()) -> Breakdown:
    """Return the bytes in use after the op at ``index``; half is taken for the allocations ``slower``."""
    sizes = program.sizes(micro_batch, slower)
    alive: set[int] = set()
    for op in program.ops[: index + 1]:
        if op >= 0:
            alive.add(op)
        else:
            alive.discard(~op)
    kinds: dict[str, int] = dict.fromkeys(program.kinds, 0)
    modules: dict[str, int] = {}
    both: dict[tuple[str, str], int] = {}
    for op in alive:
        kind, module, size = program.kinds[program.kind[op]], program.modules[program.module[op]], rounded(sizes[op])
        kinds[kind] += size
        modules[module] = modules.get(module, 0) + size
        both[module, kind] = both.get((module, kind), 0) + size
    return Breakdown({kind: size for kind, size in kinds.items() if size}, modules, both)


def timeline(
    program: Program, micro_batch: int, samples: int = 400, slower: Iterable[int] = ()
) -> list[tuple[int, ...]]:
    """Return the last traced step in at most ``samples`` parts: bytes in use by kind (as `kinds`) at the highest sum of
    each part; half is taken for the allocations ``slower``.
    """
    sizes = [rounded(size) for size in program.sizes(micro_batch, slower)]
    now = [0] * len(program.kinds)
    total = 0
    steps = max(1, len(program.ops) - program.start)
    points: dict[int, tuple[int, tuple[int, ...]]] = {}
    for index, op in enumerate(program.ops):
        change = sizes[op] if op >= 0 else -sizes[~op]
        now[program.kind[op if op >= 0 else ~op]] += change
        total += change
        if index >= program.start:
            part = (index - program.start) * samples // steps
            if part not in points or total > points[part][0]:
                points[part] = (total, tuple(now))
    return [point for _, (_, point) in sorted(points.items())]


@dataclass(frozen=True, slots=True)
class Estimate:
    """One prediction. ``peak`` values are of the caching allocator; ``outside`` is beside it; all in bytes.

    ``budget_bytes`` is the card's memory less ``outside``; ``cap_bytes`` is that less the margin, the cap that was
    replayed. ``slower`` are the workspaces of which there was room for half alone.
    """

    device: Device
    strategy: Strategy
    micro_batch: int
    fits: bool
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    budget_bytes: int
    cap_bytes: int
    margin: float
    margin_parts: tuple[Part, ...]
    outside: tuple[Term, ...]
    host_bytes: int
    peak: int
    slower: frozenset[int] = frozenset()

    @property
    def predicted_bytes(self) -> int:
        """Device memory at the peak: reserved by the allocator, and outside it."""
        return self.peak_reserved_bytes + sum(term.bytes_ for term in self.outside)


@dataclass
class Predictor:
    """Predictions for one trace under one strategy; replays are remembered, so that many cards cost little more than
    one.
    """

    trace: Trace
    strategy: Strategy = field(default_factory=Strategy)
    margin: float | None = None
    expandable: bool = False

    def __post_init__(self) -> None:
        self._unbounded: dict[int, Replay] = {}
        self._lowest: dict[int, int] = {}

    @cached_property
    def layout(self) -> Layout:
        """The blocks that the engine adds to the traced step."""
        return layout(self.trace, self.strategy)

    @cached_property
    def unmeasured(self) -> float:
        """The largest workspace of a convolution without a similar measurement, as a share of the live peak: the
        maximum over few and many samples.
        """
        workspaces = {micro_batch: unmeasured(self.trace.convolutions(micro_batch)) for micro_batch in FEW_AND_MANY}
        return max(bytes_ and bytes_ / max(1, self.lowest(at)) for at, bytes_ in workspaces.items())

    @cached_property
    def program(self) -> Program:
        """The step of one rank."""
        return compose(self.trace, self.layout)

    def cap(self, device: Device) -> int:
        """Bytes that the allocator may reserve on a card, margin taken off; 0 if nothing is left."""
        return max(0, int(self.budget(device) * (1 - self.margin_of(device))))

    def margin_of(self, device: Device) -> float:
        """The share of the budget that is kept free on a card: the given one, else `ratc.memory.margin`'s."""
        return total(self.parts(device)) if self.margin is None else self.margin

    def parts(self, device: Device) -> tuple[Part, ...]:
        """Return the parts of the margin on a card; empty if the margin was given."""
        return parts(self.trace, self.strategy, device, self.unmeasured) if self.margin is None else ()

    def outside(self, device: Device) -> tuple[Term, ...]:
        """Return the terms in use on a card outside the allocator."""
        return outside(device, self.strategy.process_groups, self.strategy.engine == "deepspeed")

    def budget(self, device: Device) -> int:
        """Bytes of a card that are left beside everything outside the allocator."""
        return device.memory_bytes - sum(term.bytes_ for term in self.outside(device))

    def lowest(self, micro_batch: int) -> int:
        """Return a lower bound of the allocator's reserved bytes."""
        if micro_batch not in self._lowest:
            self._lowest[micro_batch] = live_peak(self.program, micro_batch)
        return self._lowest[micro_batch]

    def unbounded(self, micro_batch: int) -> Replay:
        """The replay without a cap. At any cap from its peak on the replay is this one."""
        if micro_batch not in self._unbounded:
            self._unbounded[micro_batch] = replay(self.program, micro_batch, None, self.expandable)
        return self._unbounded[micro_batch]

    def at(self, cap: int, micro_batch: int) -> Replay | None:
        """The replay at a cap in bytes, or None if it does not fit."""
        known = self._unbounded.get(micro_batch)
        if known and known.peak_reserved_bytes <= cap:
            return known
        if self.lowest(micro_batch) > cap:
            return None
        found = replay(self.program, micro_batch, cap, self.expandable)
        if found.fits and not found.retries:
            self._unbounded[micro_batch] = found  # the cap was never met
        return found if found.fits else None

    def estimate(self, device: Device, micro_batch: int) -> Estimate:
        """The prediction for a card and a micro-batch. If it does not fit, the peaks are those without a cap."""
        cap = self.cap(device)
        found = self.at(cap, micro_batch)
        result = found or self.unbounded(micro_batch)
        return Estimate(
            device,
            self.strategy,
            micro_batch,
            found is not None,
            result.peak_allocated_bytes,
            result.peak_reserved_bytes,
            self.budget(device),
            cap,
            self.margin_of(device),
            self.parts(device),
            self.outside(device),
            self.layout.host_bytes,
            result.peak,
            result.slower,
        )

    def breakdown(self, estimate: Estimate) -> Breakdown:
        """Return the bytes in use at an estimate's peak."""
        return breakdown(self.program, estimate.micro_batch, estimate.peak, estimate.slower)

    def least_need(self, device: Device, micro_batch: int) -> int:
        """Return a lower bound of `need`, without a replay."""
        return self._with_rest(device, self.lowest(micro_batch))

    def need(self, device: Device, micro_batch: int) -> int:
        """Bytes that a card like this would need: the smallest cap at which the replay fits, to 1 %, and the rest put
        on top.

        Found by bisection between the live bytes and the unbounded peak, since the allocator gives cached segments
        back.
        """
        program = self.program
        low, high = self.lowest(micro_batch), self.unbounded(micro_batch).peak_reserved_bytes
        while high - low > high // 100:
            middle = (low + high) // 2
            if replay(program, micro_batch, middle, self.expandable).fits:
                high = middle
            else:
                low = middle
        return self._with_rest(device, high)

    def _with_rest(self, device: Device, reserved: int) -> int:
        return int(reserved / (1 - self.margin_of(device))) + sum(term.bytes_ for term in self.outside(device))
