"""The choice between DDP, FSDP2 and ZeRO, by predicted memory and bytes on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ratc.memory.allocators import Taken, choose
from ratc.memory.choose import Searcher, Variant
from ratc.memory.decision import Unit
from ratc.memory.terms import Device
from ratc.memory.trace import Trace
from ratc.memory.zero import BYTES, Strategy, layout
from ratc.timing import run
from ratc.timing.run import Sent
from ratc.units import size_text


def sent_bytes(strategy: Strategy, trainable: int, accumulation: int) -> float:
    """Bytes that a process sends in an optimizer step under a strategy."""
    world = strategy.world_size
    if strategy.engine == "fsdp2":
        width = BYTES[strategy.gathered]
        return sum(run.sent_by_shards(strategy.shard, strategy.shards, trainable, world, accumulation, width))
    return run.sent_bytes(strategy.engine, strategy.zero_stage, trainable, world, accumulation)


def sent(strategy: Strategy, trainable: int, accumulation: int, nodes: int) -> Sent:
    """Return the bytes of an optimizer step by the links that carry them.

    A ring over all processes crosses to another node once a node. If groups of shards lie within nodes, only their sums
    do: a ring for each shard, all over the node's network.
    """
    world = strategy.world_size
    if nodes == 1:
        return Sent(within=sent_bytes(strategy, trainable, accumulation))
    if strategy.engine == "fsdp2" and strategy.shards <= world // nodes:
        width = BYTES[strategy.gathered]
        inside, outside = run.sent_by_shards(strategy.shard, strategy.shards, trainable, world, accumulation, width)
        return Sent(inside, outside * strategy.shards)
    return Sent(between=sent_bytes(strategy, trainable, accumulation))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy under its name in a spec, with the variants of the step and the ZeRO stages that it allows."""

    name: str
    strategy: Strategy
    variants: Sequence[Variant]
    stages: tuple[int, ...] = (0,)


def compare(
    candidates: Sequence[Candidate], allowed: Mapping[str, Searcher], device: Device
) -> tuple[Candidate, Taken, str] | None:
    """Return the best candidate, its choice and the reason; None if nothing fits with any.

    Strategies that recompute no activations come first. Then fewest accumulation steps, since each is a pass over the
    model, then fewest bytes that a process sends in an optimizer step, then least memory. Of equals the first candidate
    is taken.
    """
    rows: list[tuple[tuple[bool, int, float, int], Candidate, Taken]] = []
    told = []
    for candidate in candidates:
        taken = choose(allowed, candidate.variants, candidate.strategy, device, candidate.stages)
        if taken is None:
            told.append(f"{candidate.name} does not fit")
            continue
        choice = taken.choice
        estimate = choice.estimate
        searcher = allowed[taken.allocator]
        trace = searcher.predictor(taken.variant, estimate.strategy, estimate.micro_batch).trace
        sent = sent_bytes(estimate.strategy, trace.trainable, choice.accumulation)
        recomputes = bool(taken.variant.activation_checkpointing)
        rows.append(((recomputes, choice.accumulation, sent, estimate.predicted_bytes), candidate, taken))
        stage = f" {estimate.strategy.zero_stage}" if candidate.name == "deepspeed" else ""
        told.append(
            f"{candidate.name}{stage} {estimate.micro_batch} x {choice.accumulation}, "
            f"{size_text(estimate.predicted_bytes)}, {size_text(round(sent))} sent a step"
        )
    if not rows:
        return None
    _, best, taken = min(rows, key=lambda row: row[0])
    return best, taken, "; ".join(told)


def units(trace: Trace, strategy: Strategy) -> tuple[Unit, ...]:
    """Return the units of FSDP2 in a trace by class, each with its modules' number and the bytes of the largest."""
    sizes: dict[str, list[int]] = {}
    for unit in layout(trace, strategy).units:
        if unit.name:
            sizes.setdefault(trace.classes[unit.name], []).append(unit.bytes_)
    return tuple(Unit(name, len(found), max(found)) for name, found in sorted(sizes.items()))
