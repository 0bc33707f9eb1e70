"""Chooses the smallest set of blocks to recompute, so that a micro-batch fits: `activation_checkpointing: auto`.

The sets are tried on traces that are put together (`ratc.memory.smallest_set`). The first one that fits is then traced
itself, and counts only if it fits by its own trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from ratc import facts
from ratc.memory import allocators, smallest_set
from ratc.memory.allocators import Taken
from ratc.memory.choose import Searcher, Variant
from ratc.memory.decision import Recomputed
from ratc.memory.terms import Device
from ratc.memory.trace import Trace
from ratc.memory.zero import Strategy
from ratc.timing.roofline import Rates, launch_seconds
from ratc.timing.run import span_text

#: Sets that are traced, and then as many larger ones, before all blocks are. Chosen, not measured: a trace takes
#: seconds.
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
    """Return the smallest set with which the micro-batch fits; None if it fits with none that is tried: the first that
    should fit, larger ones, and all blocks. All blocks together may need more than some of them.

    ``plain`` is the step that keeps everything, which does not fit. Raises ``ratc.fitting.traces.NoTrace``.
    """
    trace = searcher.predictor(plain, strategy, micro_batch).trace
    accumulation = searcher.share // micro_batch
    seconds = forward_seconds(trace, device, micro_batch, accumulation)
    found = smallest_set.blocks(searcher, plain, strategy, micro_batch, seconds or {})
    every = replace(plain, activation_checkpointing=True)
    all_names = tuple(block.name for block in found)
    sets = smallest_set.fitting(searcher, plain, strategy, device, micro_batch, found) if found else iter(())
    for names in _in_turn(sets, all_names):
        used = every if names == all_names else replace(plain, activation_checkpointing=names)
        predictor = searcher.predictor(used, strategy, micro_batch)
        if predictor.at(predictor.cap(device), micro_batch) is not None:
            taken = [block for block in found if block.name in names]
            told = (Recomputed(one.name, one.bytes_, one.seconds if seconds else None) for one in taken)
            return Smallest(used, tuple(told), len(found))
    return None


def _in_turn(sets: Iterator[tuple[str, ...]], all_names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the sets to trace. Each is looked for when the one before does not fit."""
    most = 0
    for names in islice(sets, MOST_TRACED):
        yield names
        most = max(most, len(names))
    yield from islice((names for names in sets if most < len(names) < len(all_names)), MOST_TRACED)
    yield all_names


def choose(
    allowed: Mapping[str, Searcher],
    variants: Sequence[Variant],
    strategy: Strategy,
    device: Device,
    stages: Sequence[int],
) -> tuple[Taken | None, Smallest | None]:
    """Return the choice of ``ratc.memory.allocators.choose``. If nothing fits without recomputing all blocks, and the
    spec leaves them to ratc, return the choice with the smallest set of blocks, and that set.

    It is the smallest set with which one sample fits in the leanest step, by any allocator; the micro-batch is the
    largest with it. None if nothing fits.
    """
    taken = allocators.choose(allowed, variants, strategy, device, stages)
    plain = [one for one in variants if not one.activation_checkpointing][-1:]
    if not plain or plain == [variants[-1]] or (taken and not taken.variant.activation_checkpointing):
        return taken, None
    most = replace(strategy, zero_stage=max(stages))
    found = [smallest(searcher, plain[0], most, device, 1) for searcher in allowed.values()]
    best = min((one for one in found if one), key=lambda one: len(one.recomputed), default=None)
    fitting = allocators.choose(allowed, [best.variant], strategy, device, stages) if best else None
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
