"""The search for the smallest set of blocks to recompute, so that a micro-batch fits. Pure: the traces are given.

Blocks of one kind have the same allocations and kernels, and differ only in their places. The activations of an earlier
block are alive from before those of a later one until after them, so the earliest blocks of a kind are taken. A set is
then given by the number of blocks of each kind.

- Smaller sets are tried first; of equal sizes, the set that takes the least time to recompute.
- A set is skipped if it frees too few bytes at the peak of the plain step.
- The segments of the allocator follow no such order. If no set of a size fits, but the bytes in use of one would,
  MOST_PLACES other sets of that size are tried.
- After MOST_SETS replays the search goes on greedily.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

from ratc.memory.allocator import rounded
from ratc.memory.choose import Searcher, Variant
from ratc.memory.estimate import Predictor
from ratc.memory.recomputation import Assumed, kept
from ratc.memory.terms import Device
from ratc.memory.trace import Program, Trace
from ratc.memory.zero import Strategy

#: Sets that are replayed before the search becomes greedy, and sets that are listed to choose these from. The limits
#: are chosen, not measured.
MOST_SETS, MOST_LISTED = 256, 50_000
#: Other sets of a size that are tried if the bytes of the earliest blocks would fit, but their segments do not. Chosen,
#: not measured.
MOST_PLACES = 32


@dataclass(frozen=True, slots=True)
class Block:
    """A block that may be recomputed: the bytes that this frees at the peak of the plain step, and the seconds that it
    adds to a step. Blocks of equal ``kind`` have the same allocations and kernels.
    """

    name: str
    kind: object
    bytes_: int
    seconds: float


def blocks(
    searcher: Searcher, plain: Variant, strategy: Strategy, micro_batch: int, seconds: Mapping[str, float]
) -> list[Block]:
    """Return the blocks of a plain step that keep something for backward, in the order of the forward pass.
    ``seconds`` are the times of their forward; none for an unknown one.
    """
    predictor = searcher.predictor(plain, strategy, micro_batch)
    trace = predictor.trace
    freed = _freed(predictor.program, trace, micro_batch)
    kinds = _kinds(trace)
    return [Block(name, kinds[name], size, seconds.get(name, 0.0)) for name, size in freed.items()]


def fitting(
    searcher: Searcher, plain: Variant, strategy: Strategy, device: Device, micro_batch: int, found: Sequence[Block]
) -> Iterator[tuple[str, ...]]:
    """Yield the sets of blocks with which the micro-batch fits, best first, as names in the order of ``found``.

    They fit by the traces of `ratc.memory.recomputation`, which are put together. ``found`` are all blocks.
    """
    return _Search(searcher, plain, strategy, device, micro_batch, found).sets()


def _freed(program: Program, trace: Trace, micro_batch: int) -> dict[str, int]:
    """Return the bytes that each block keeps at the moment at which most bytes are in use."""
    sizes = [rounded(size) for size in program.sizes(micro_batch, program.optional)]
    alive: set[int] = set()
    live = most = 0
    at_peak: set[int] = set()
    rising = False
    for op in program.ops:
        if op >= 0:
            alive.add(op)
            live += sizes[op]
            rising = True
            continue
        if rising and live > most:
            most, at_peak = live, set(alive)
        rising = False
        alive.discard(~op)
        live -= sizes[~op]
    return {name: sum(sizes[op] for op in ops & at_peak) for name, ops in kept(trace).items() if ops}


def _kinds(trace: Trace) -> dict[str, object]:
    program, found = trace.program, dict[str, list[object]]()
    for span in (span for span in trace.blocks if span.forward[0] >= trace.steps[-1]):
        made = (op for op in program.ops[slice(*span.forward)] if op >= 0)
        sizes = tuple((program.fixed[op], program.slope[op], program.kind[op], program.scratch.get(op)) for op in made)
        found.setdefault(span.name, []).append((sizes, tuple(sorted(span.launches.items()))))
    return {name: tuple(calls) for name, calls in found.items()}


def _seconds(chosen: Sequence[Block]) -> float:
    return sum(block.seconds for block in chosen)


class _Search:
    def __init__(
        self,
        searcher: Searcher,
        plain: Variant,
        strategy: Strategy,
        device: Device,
        micro_batch: int,
        found: Sequence[Block],
    ) -> None:
        self.searcher, self.plain, self.strategy = searcher, plain, strategy
        self.device, self.micro_batch, self.blocks = device, micro_batch, list(found)
        self.library = Assumed(searcher.library)
        predictor = self._predictor(())
        self.trace = predictor.trace
        self.missing = predictor.lowest(micro_batch) - predictor.cap(device)

    def sets(self) -> Iterator[tuple[str, ...]]:
        replayed = listed = 0
        for size in range(1, len(self.blocks) + 1):
            most = sorted((block.bytes_ for block in self.blocks), reverse=True)[:size]
            if sum(most) < self.missing:
                continue
            of_size = list(islice(self._of_size(size), MOST_LISTED - listed))
            listed += len(of_size)
            is_near = found = False
            tried = set()
            for chosen in sorted(filter(self._may_fit, of_size), key=_seconds):
                names = self._names(chosen)
                tried.add(names)
                fits, has_room = self._judge(names)
                is_near, found, replayed = is_near or has_room, found or fits, replayed + 1
                if fits:
                    yield names
                if replayed == MOST_SETS:
                    break
            if is_near and not found:
                # The bytes in use would fit, but not the segments that hold them: in other places they may.
                for chosen in islice(filter(self._may_fit, map(list, combinations(self.blocks, size))), MOST_PLACES):
                    names = self._names(chosen)
                    if names not in tried and self._judge(names)[0]:
                        yield names
            if replayed == MOST_SETS or listed == MOST_LISTED:
                break
        else:
            return
        if greedy := self._greedy():
            yield self._names(greedy)

    def _may_fit(self, chosen: Sequence[Block]) -> bool:
        return sum(block.bytes_ for block in chosen) >= self.missing

    def _judge(self, names: tuple[str, ...]) -> tuple[bool, bool]:
        """Whether the step fits, and whether the bytes in use do."""
        predictor = self._predictor(names)
        cap = predictor.cap(self.device)
        has_room = predictor.lowest(self.micro_batch) <= cap
        return has_room and predictor.at(cap, self.micro_batch) is not None, has_room

    def _of_size(self, size: int) -> Iterator[list[Block]]:
        """Yield the sets of a size that take the earliest blocks of each kind."""
        kinds: dict[object, list[Block]] = {}
        for block in self.blocks:
            kinds.setdefault(block.kind, []).append(block)
        groups = list(kinds.values())
        after = [sum(map(len, groups[at:])) for at in range(len(groups) + 1)]

        def choose(at: int, left: int) -> Iterator[list[Block]]:
            if not left:
                yield []
            elif left <= after[at]:
                for count in range(min(left, len(groups[at])), -1, -1):
                    for rest in choose(at + 1, left - count):
                        yield [*groups[at][:count], *rest]

        yield from choose(0, size)

    def _greedy(self) -> list[Block]:
        """Add the block that frees most at the peak of the moment until the step fits; then leave out those that are
        not needed. Empty if it never fits.
        """
        chosen: list[Block] = []
        while not (chosen and self._fits(chosen)):
            program = self._predictor(self._names(chosen)).program
            freed = _freed(program, self.trace, self.micro_batch)
            left = [block for block in self.blocks if block not in chosen and freed.get(block.name)]
            if not left:
                return []
            chosen.append(max(left, key=lambda block: (freed[block.name], -block.seconds)))
        for block in sorted(chosen, key=lambda block: block.bytes_):
            fewer = [one for one in chosen if one is not block]
            if fewer and self._fits(fewer):
                chosen = fewer
        return chosen

    def _fits(self, chosen: Sequence[Block]) -> bool:
        return self._judge(self._names(chosen))[0]

    def _predictor(self, names: tuple[str, ...]) -> Predictor:
        """The predictor of a step that recomputes some blocks. It is not kept: a program has a list for each column."""
        own = self.searcher
        searcher = Searcher(self.library, own.share, own.margin, own.expandable)
        wanted = replace(self.plain, activation_checkpointing=names) if names else self.plain
        return searcher.predictor(wanted, self.strategy, self.micro_batch)

    def _names(self, chosen: Sequence[Block]) -> tuple[str, ...]:
        names = {block.name for block in chosen}
        return tuple(block.name for block in self.blocks if block.name in names)
