"""Chooses the smallest set of blocks to recompute, so that a micro-batch fits: `activation_checkpointing: auto`.

The sets are tried on traces that are put together (`ratc.memory.smallest_set`). The first one that fits is then traced
itself, and counts only if it fits by its own trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from ratc import facts
from ratc.memory import smallest_set
from ratc.memory.allocators import Taken, choose
from ratc.memory.choose import Searcher, Variant
from ratc.memory.decision import Recomputed
from ratc.memory.terms import Device
from ratc.memory.trace import Trace
from ratc.memory.zero import Strategy
from ratc.timing.roofline import Rates, launch_seconds
from ratc.timing.run import span_text

#: Sets that are traced, before all blocks are taken. Chosen, not measured: a trace takes seconds.
MOST_TRACED = 3


@dataclass(frozen=True, slots=True)
class Smallest:
    """The step with the smallest set of recomputed blocks that makes a micro-batch fit; ``blocks`` is the number of all
    blocks that could be recomputed.
    """

    variant: Variant
    recomputed: tuple[Recomputed, ...]
    blocks: int

    @property
    def longer(self) -> str:
        """The time that recomputing adds to a step, in words; empty if it is not known."""
        seconds = [one.seconds for one in self.recomputed if one.seconds is not None]
        return span_text(sum(seconds)) if seconds else ""


def smallest(
    searcher: Searcher, plain: Variant, strategy: Strategy, device: Device, micro_batch: int
) -> Smallest | None:
    """Return the smallest set with which the micro-batch fits; None if it does not even fit with all blocks.

    ``plain`` is the step that keeps everything, which does not fit. Raises ``ratc.fitting.traces.NoTrace``.
    """
    trace = searcher.predictor(plain, strategy, micro_batch).trace
    accumulation = searcher.share // micro_batch
    seconds = forward_seconds(trace, device, micro_batch, accumulation)
    found = smallest_set.blocks(searcher, plain, strategy, micro_batch, seconds or {})
    every = replace(plain, activation_checkpointing=True)
    all_names = tuple(block.name for block in found)
    sets = smallest_set.fitting(searcher, plain, strategy, device, micro_batch, found) if found else iter(())
    for names in (*islice(sets, MOST_TRACED), all_names):
        used = every if names == all_names else replace(plain, activation_checkpointing=names)
        predictor = searcher.predictor(used, strategy, micro_batch)
        if predictor.at(predictor.cap(device), micro_batch) is not None:
            taken = [block for block in found if block.name in names]
            told = (Recomputed(one.name, one.bytes_, one.seconds if seconds else None) for one in taken)
            return Smallest(used, tuple(told), len(found))
    return None


def fewest(
    allowed: Mapping[str, Searcher],
    taken: Taken,
    variants: Sequence[Variant],
    strategy: Strategy,
    device: Device,
    stages: Sequence[int],
) -> tuple[Taken, Smallest | None]:
    """Return a choice with the smallest set of blocks recomputed, and that set, in the place of one with all of them:
    the smallest with which one sample fits in the leanest step, by any allocator, and the largest micro-batch with it.
    """
    plain = [one for one in variants if not one.activation_checkpointing][-1:]
    if not (plain and taken.variant.activation_checkpointing):
        return taken, None
    most = replace(strategy, zero_stage=max(stages))
    found = [smallest(searcher, plain[0], most, device, 1) for searcher in allowed.values()]
    best = min((one for one in found if one), key=lambda one: len(one.recomputed), default=None)
    fitting = choose(allowed, [best.variant], strategy, device, stages) if best else None
    return (fitting, best) if fitting else (taken, None)


def forward_seconds(trace: Trace, device: Device, micro_batch: int, accumulation: int) -> dict[str, float]:
    """Return the seconds of each block's forward in an optimizer step, by the roofline of its kernels; empty if the
    card's peak rates or the kernels are not known.
    """
    card = facts.find_card(device.name)
    if not isinstance(card, facts.Card) or card.peaks is None or not trace.work:
        return {}
    rates = Rates(dict(card.peaks.operations), card.peaks.bandwidth)
    times = [launch_seconds(kernel, micro_batch, rates) for kernel in trace.work]
    found: dict[str, float] = {}
    for span in trace.blocks:
        own = sum(times[row] * launches for row, launches in span.launches.items())
        found[span.name] = found.get(span.name, 0.0) + own * accumulation / trace.micro_batches
    return found
