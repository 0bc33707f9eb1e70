"""The choice between DDP, FSDP2 and ZeRO, by predicted memory and bytes on the wire."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ratc.memory.allocators import Taken
from ratc.memory.choose import Searcher, Variant
from ratc.memory.decision import Unit
from ratc.memory.trace import Trace
from ratc.memory.zero import BYTES, Strategy, layout
from ratc.timing import run
from ratc.timing.run import Links, Sent, Sizes
from ratc.units import counted, size_text


def sizes_of(trace: Trace) -> Sizes:
    """Return the elements of a traced model's weights."""
    return Sizes(trace.trainable, trace.count)


def sent_bytes(strategy: Strategy, sizes: Sizes, accumulation: int) -> float:
    """Bytes that a process sends in an optimizer step under a strategy."""
    world = strategy.world_size
    if strategy.engine == "fsdp2":
        return sum(_by_shards(strategy, sizes, accumulation))
    if strategy.engine == "deepspeed":
        return run.sent_by_zero(strategy.zero_stage, sizes, world, accumulation, BYTES[strategy.precision])
    return run.sent_by_ddp(sizes, world)


def _by_shards(strategy: Strategy, sizes: Sizes, accumulation: int) -> tuple[float, float]:
    width = BYTES[strategy.gathered]
    return run.sent_by_shards(strategy.shard, strategy.shards, sizes, strategy.world_size, accumulation, width)


def sent(strategy: Strategy, sizes: Sizes, accumulation: int, nodes: int) -> Sent:
    """Return the bytes of an optimizer step by the links that carry them.

    A ring over all processes crosses to another node once a node. With HSDP each shard's sum is a ring of its own, all
    over the node's network. Groups of shards stay within nodes if their size divides a node's processes. Larger ones
    cross once a node, and of those that do not begin with a node, two may cross at each.
    """
    if nodes == 1:
        return Sent(within=sent_bytes(strategy, sizes, accumulation))
    each = strategy.world_size // nodes
    if strategy.engine != "fsdp2" or strategy.shards == strategy.world_size:
        return Sent(between=sent_bytes(strategy, sizes, accumulation))
    inside, outside = _by_shards(strategy, sizes, accumulation)
    if each % strategy.shards == 0:
        return Sent(inside, outside * strategy.shards)
    crossing = 1 if strategy.shards % each == 0 else 2
    return Sent(between=crossing * inside + each * outside)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy under its name in a spec, with the variants of the step and the ZeRO stages that it allows.

    ``converts`` says that its checkpoints have to be converted for another number of processes, which the job may get.
    """

    name: str
    strategy: Strategy
    variants: Sequence[Variant]
    stages: tuple[int, ...] = (0,)
    converts: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    """A candidate with its choice, and what it sends in an optimizer step: the bytes of a process, and by link."""

    candidate: Candidate
    taken: Taken
    bytes_: float
    by_link: Sent

    @property
    def blocks(self) -> float:
        """The number of blocks that are recomputed; infinity for all."""
        recomputed = self.taken.variant.activation_checkpointing
        return math.inf if recomputed is True else len(recomputed or ())

    def cost(self, seconds: float | None) -> tuple[float, int, bool, float, int]:
        choice = self.taken.choice
        sending = self.bytes_ if seconds is None else seconds
        converts = self.candidate.converts
        return self.blocks, choice.accumulation, converts, sending, choice.estimate.predicted_bytes

    def text(self, seconds: float | None) -> str:
        estimate = self.taken.choice.estimate
        stage = f" {estimate.strategy.zero_stage}" if estimate.strategy.engine == "deepspeed" else ""
        blocks = "all blocks" if math.isinf(self.blocks) else counted(int(self.blocks), "block")
        return (
            f"{self.candidate.name}{stage} {estimate.micro_batch} x {self.taken.choice.accumulation}, "
            f"{size_text(estimate.predicted_bytes)}, {size_text(round(self.bytes_))} sent a step"
            + ("" if seconds is None else f" in {run.span_text(seconds)}")
            + (f", {blocks} recomputed" if self.blocks else "")
            + (", checkpoints converted for other nodes" if self.candidate.converts else "")
        )


def compare(
    candidates: Sequence[Candidate],
    allowed: Mapping[str, Searcher],
    chosen: Callable[[Candidate], Taken | None],
    nodes: int,
    links: Links,
    unfit: str,
) -> tuple[Candidate, Taken, str] | None:
    """Return the best candidate, its choice and the reason; None if nothing fits with any. ``chosen`` gives the choice
    of a candidate, or None if nothing fits with it, which ``unfit`` says.

    Strategies that recompute the fewest blocks come first. Then fewest accumulation steps, since each is a pass over
    the model, then checkpoints that need no conversion, then least time to send the bytes of an optimizer step, then
    least memory. If a bandwidth is not known, the bytes that a process sends stand for that time. Of equals the first
    candidate is taken.
    """
    rows: list[_Row] = []
    left_out = []
    for candidate in candidates:
        taken = chosen(candidate)
        if taken is None:
            left_out.append(f"{candidate.name} {unfit}")
            continue
        choice = taken.choice
        of_step = choice.estimate.strategy
        trace = allowed[taken.allocator].predictor(taken.variant, of_step, choice.estimate.micro_batch).trace
        of_rows = (of_step, sizes_of(trace), choice.accumulation)
        rows.append(_Row(candidate, taken, sent_bytes(*of_rows), sent(*of_rows, nodes)))
    if not rows:
        return None
    times = [links.seconds(row.by_link) for row in rows]
    if None in times:
        times = [None] * len(rows)
    costs = [row.cost(seconds) for row, seconds in zip(rows, times, strict=True)]
    best = rows[costs.index(min(costs))]
    told = [row.text(seconds) for row, seconds in zip(rows, times, strict=True)]
    return best.candidate, best.taken, "; ".join([*told, *left_out])


def units(trace: Trace, strategy: Strategy) -> tuple[Unit, ...]:
    """Return the units of FSDP2 in a trace by class, each with its modules' number and the bytes of the largest."""
    sizes: dict[str, list[int]] = {}
    for unit in layout(trace, strategy).units:
        if unit.name:
            sizes.setdefault(trace.classes[unit.name], []).append(unit.bytes_)
    return tuple(Unit(name, len(found), max(found)) for name, found in sorted(sizes.items()))
