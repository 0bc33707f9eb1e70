"""Checks a micro-batch that the spec gives against its card, and finds one that fits. Pure: traces are given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ratc.catalog.alloc_conf import EXPANDABLE
from ratc.memory import measured
from ratc.memory.choose import Alternative, Choice, Searcher, Untraceable, Variant, describe
from ratc.memory.estimate import Breakdown, Estimate
from ratc.memory.measured import Measurement
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of checking a given micro-batch.

    ``is_tight`` says that it fits, but leaves less than the margin. ``need_bytes`` is the memory of a card on which it
    would fit with the margin. ``largest`` is the largest smaller divisor of a rank's share that fits; ``ways`` are
    single changes with which the given one fits. Both are searched only if the given one does not fit.
    """

    choice: Choice
    is_tight: bool
    need_bytes: int
    largest: Choice | None = None
    ways: tuple[Alternative, ...] = ()
    #: The date and the version of torch of its measurement; None for a prediction.
    measured: str | None = None

    @property
    def fits(self) -> bool:
        """Whether it fits and leaves the margin free."""
        return self.choice.estimate.fits


def predicted(
    searcher: Searcher,
    variant_of: Callable[[int], Variant],
    strategy: Strategy,
    device: Device,
    micro_batch: int,
    stages: Iterable[int],
    others: Iterable[Variant] = (),
) -> Verdict:
    """Return the verdict of a trace on a micro-batch that divides the share. ``variant_of`` gives the step of a
    micro-batch, which may decide the attention. ``stages`` are the ZeRO stages, ``others`` the variants, that may help.
    """
    variant = variant_of(micro_batch)
    choice = choice_of(searcher, variant, strategy, device, micro_batch)
    found = choice.estimate
    if found.fits:
        return Verdict(choice, False, found.predicted_bytes)
    predictor = searcher.predictor(variant, strategy, micro_batch)
    room = predictor.at(found.budget_bytes, micro_batch)
    if room:  # of a tight fit the bytes are those in use on this card
        found = replace(
            found,
            peak_allocated_bytes=room.peak_allocated_bytes,
            peak_reserved_bytes=room.peak_reserved_bytes,
            peak=room.peak,
            slower=room.slower,
        )
        choice = replace(choice, estimate=found, breakdown=predictor.breakdown(found))
    ways = []
    if not searcher.expandable:
        other_searcher = Searcher(searcher.library, searcher.share, searcher.margin, expandable=True)
        if other_searcher.estimate(variant, strategy, device, micro_batch).fits:
            choice_there = choice_of(other_searcher, variant, strategy, device, micro_batch)
            ways.append(Alternative(f"`allocator: {EXPANDABLE}`", choice_there))
    for there in others:
        change = describe(variant, there)
        with contextlib.suppress(Untraceable):
            if change and searcher.estimate(there, strategy, device, micro_batch).fits:
                ways.append(Alternative(change, choice_of(searcher, there, strategy, device, micro_batch)))
                break
    for stage in sorted(stages):
        other = replace(strategy, zero_stage=stage)
        if searcher.estimate(variant, other, device, micro_batch).fits:
            ways.append(Alternative(f"`zero_stage: {stage}`", choice_of(searcher, variant, other, device, micro_batch)))
            break
    largest = None
    for size in searcher.divisors:
        if size < micro_batch:
            smaller = searcher.predictor(variant_of(size), strategy, size)
            if smaller.at(smaller.cap(device), size) is not None:
                largest = choice_of(searcher, variant_of(size), strategy, device, size)
                break
    return Verdict(choice, room is not None, predictor.need(device, micro_batch), largest, tuple(ways))


def by_measurement(
    found: Measurement, share: int, device: Device, strategy: Strategy, micro_batch: int
) -> Verdict | None:
    """Return the verdict of a measurement on a micro-batch; None if the measurement does not reach so far.

    ``share`` is the number of samples of one rank in an optimizer step.
    """
    estimate = measured.estimate(found, micro_batch, device, strategy)
    if estimate is None:
        return None
    choice = Choice(estimate, share // micro_batch, Breakdown({}, {}, {}))
    if estimate.fits:
        return Verdict(choice, False, estimate.predicted_bytes, measured=found.source)
    need = int(estimate.peak_reserved_bytes / (1 - estimate.margin)) + _outside(estimate)
    is_tight = estimate.peak_reserved_bytes <= estimate.budget_bytes
    largest = measured.choose(found, share, device, strategy)
    if largest and largest.estimate.micro_batch > micro_batch:
        largest = None
    return Verdict(choice, is_tight, need, largest, measured=found.source)


def choice_of(searcher: Searcher, variant: Variant, strategy: Strategy, device: Device, micro_batch: int) -> Choice:
    """Return a micro-batch as a choice, whether it fits or not."""
    found = searcher.estimate(variant, strategy, device, micro_batch)
    broken = searcher.predictor(variant, strategy, micro_batch).breakdown(found)
    return Choice(found, searcher.share // micro_batch, broken)


def _outside(estimate: Estimate) -> int:
    return sum(term.bytes_ for term in estimate.outside)
