"""The choice of micro-batch and ZeRO stage, and the ways out if nothing fits. Pure: the traces are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Protocol, TypeAlias

from ratc.memory.estimate import Breakdown, Estimate, Predictor
from ratc.memory.terms import Device
from ratc.memory.trace import Trace
from ratc.memory.zero import Strategy, bucket_elements

#: Cards that are named if nothing fits.
MOST_CARDS = 3


@dataclass(frozen=True, slots=True)
class Variant:
    """The conditions of a trace that a choice may change.

    ``kernels`` is `Device.kernels`. ``image_size`` holds the sides of a sample in pixels, outermost first.
    ``activation_checkpointing`` is True for all blocks of the model, False for none, or the names of some blocks.
    """

    precision: str
    kernels: str = "8.0"
    activation_checkpointing: bool | tuple[str, ...] = False
    image_size: tuple[int, ...] = (0, 0)
    engine: str = "torch"
    attention_memory: str = "full"


class Untraceable(Exception):
    """A trace cannot be made. A search among ways out passes over the variant."""


class Traces(Protocol):
    """The traces of one variant. An implementation may make each one at its first use."""

    def trace(self, accumulating: bool, one_sample: bool) -> Trace:
        """Return the trace of a step: of several micro-batches if ``accumulating``, else of one; valid for a
        micro-batch of 1 if ``one_sample``, else for larger ones. Raises Untraceable.
        """


#: Every variant that was traced. No other one is proposed.
Library: TypeAlias = Mapping[Variant, Traces]


@dataclass(frozen=True, slots=True)
class Choice:
    """The largest micro-batch that fits: ``accumulation`` steps of it make a rank's ``share`` of the global batch."""

    estimate: Estimate
    accumulation: int
    breakdown: Breakdown
    #: The next larger divisor, which does not fit; None if the whole share does.
    next_larger: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A change of the spec with which training fits, in words, and the predicted choice with it."""

    change: str
    choice: Choice


@dataclass(frozen=True, slots=True)
class DoesNotFit:
    """Not even a micro-batch of 1 fits: the bytes that it needs, their breakdown, and the alternatives."""

    estimate: Estimate
    need_bytes: int
    breakdown: Breakdown
    alternatives: tuple[Alternative, ...]


class Searcher:
    """Choices over one library. Predictors, and with them replays, are shared between cards."""

    def __init__(self, library: Library, share: int, margin: float | None = None, expandable: bool = False) -> None:
        """``share`` is global batch / world size: samples of one rank and optimizer step. Raises ValueError below 1."""
        if share < 1:
            raise ValueError(f"a rank's share of {share} samples")
        self.library, self.share, self.margin, self.expandable = library, share, margin, expandable
        self.divisors = [n for n in range(share, 0, -1) if share % n == 0]
        self._predictors: dict[tuple[Variant, Strategy, bool], Predictor] = {}

    def predictor(self, variant: Variant, strategy: Strategy, micro_batch: int) -> Predictor:
        """Return the predictor for a micro-batch. It uses the accumulating trace unless the micro-batch is the whole
        share, and a separate trace for a micro-batch of 1. Raises KeyError if the variant was not traced.
        """
        several = micro_batch < self.share
        trace = self.library[variant].trace(several, one_sample=micro_batch == 1)
        bucket = min(strategy.bucket, bucket_elements(trace.trainable))
        exact = replace(strategy, accumulates=several, precision=variant.precision, bucket=bucket)
        key = (variant, exact, micro_batch == 1)
        if key not in self._predictors:
            self._predictors[key] = Predictor(trace, exact, self.margin, self.expandable)
        return self._predictors[key]

    def estimate(self, variant: Variant, strategy: Strategy, device: Device, micro_batch: int) -> Estimate:
        """The prediction for a micro-batch, which need not divide the share."""
        return self.predictor(variant, strategy, micro_batch).estimate(device, micro_batch)

    def choose(
        self, variant: Variant, strategy: Strategy, device: Device, fewer_steps_than: int | None = None
    ) -> Choice | None:
        """Return the largest divisor of the share that fits at the cap with the margin; None if there is none.

        With ``fewer_steps_than``, a choice with that many accumulation steps or more counts as none.

        The whole share has a separate trace. For the other divisors the live bytes grow with the micro-batch, so
        bisection finds the largest divisor that they allow. From there down, the first divisor whose replay fits is
        taken. Bisection over the replays would be wrong: fragmentation need not grow with the micro-batch.
        """
        least = 0 if fewer_steps_than is None else self.share // fewer_steps_than
        if self.share <= least:
            return None
        if self._fits(variant, strategy, device, self.share):
            return self._chosen(variant, strategy, device, 0)
        low, high = 1, len(self.divisors)
        while low < high:
            middle = (low + high) // 2
            micro = self.divisors[middle]
            predictor = self.predictor(variant, strategy, micro)
            if predictor.lowest(micro) <= predictor.cap(device):
                high = middle
            else:
                low = middle + 1
        for position in range(low, len(self.divisors)):
            if self.divisors[position] <= least:
                return None
            if self._fits(variant, strategy, device, self.divisors[position]):
                return self._chosen(variant, strategy, device, position)
        return None

    def _fits(self, variant: Variant, strategy: Strategy, device: Device, micro_batch: int) -> bool:
        predictor = self.predictor(variant, strategy, micro_batch)
        return predictor.at(predictor.cap(device), micro_batch) is not None

    def _chosen(self, variant: Variant, strategy: Strategy, device: Device, position: int) -> Choice:
        micro = self.divisors[position]
        estimate = self.estimate(variant, strategy, device, micro)
        above = self.estimate(variant, strategy, device, self.divisors[position - 1]) if position else None
        parts = self.predictor(variant, strategy, micro).breakdown(estimate)
        return Choice(estimate, self.share // micro, parts, above)

    def choose_stage(
        self, variant: Variant, strategy: Strategy, device: Device, stages: Iterable[int]
    ) -> Choice | None:
        """Return the choice at the lowest of the ZeRO stages that needs no more accumulation steps than any other; None
        if none fits.
        """
        best: Choice | None = None
        for stage in sorted(stages):
            needed = best.accumulation if best else None
            best = self.choose(variant, replace(strategy, zero_stage=stage), device, needed) or best
        return best

    def sizes(self) -> tuple[int, ...]:
        """Return the micro-batches that may need the least: one sample, and the whole share, which needs no gradients
        beside the activations.
        """
        return tuple(dict.fromkeys((1, self.share)))

    def does_not_fit(
        self,
        variant: Variant,
        strategy: Strategy,
        device: Device,
        cards: Sequence[Device] = (),
        stages: Sequence[int] = (),
        micro_batch: int = 1,
    ) -> DoesNotFit:
        """Return the bytes that a micro-batch needs, and single changes with which training is predicted to fit.

        They are changes of the variant, of the card (MOST_CARDS of ``cards``, the smallest), of the ZeRO stage (one of
        ``stages``), or offload.
        """
        predictor = self.predictor(variant, strategy, micro_batch)
        estimate = predictor.estimate(device, micro_batch)
        ways = [*self._variants(variant, strategy, device), *self._stages(variant, strategy, device, stages)]
        ways += self._cards(variant, strategy, device, cards)
        return DoesNotFit(estimate, predictor.need(device, micro_batch), predictor.breakdown(estimate), tuple(ways))

    def _variants(self, variant: Variant, strategy: Strategy, device: Device) -> list[Alternative]:
        def area(other: Variant) -> int:
            return prod(other.image_size)

        found: list[Alternative] = []
        smaller = False
        # Of the image sizes only the largest that fits: the smaller ones follow, and need not be traced.
        for other in sorted(self.library, key=lambda other: (other.image_size != variant.image_size, -area(other))):
            change = describe(variant, other)
            resized = other.image_size != variant.image_size
            if change is None or (resized and smaller):
                continue
            choice = self._choice_if_traceable(other, strategy, device)
            if choice:
                found.append(Alternative(change, choice))
                smaller = resized
        return found

    def _choice_if_traceable(self, variant: Variant, strategy: Strategy, device: Device) -> Choice | None:
        try:
            # With accumulation a step needs no less: for what is hopeless without it no further trace is made.
            whole = self.predictor(variant, strategy, self.share)
            hopeless = whole.lowest(1) > whole.cap(device)
            return None if hopeless else self.choose(variant, strategy, device)
        except Untraceable:
            return None

    def _stages(self, variant: Variant, strategy: Strategy, device: Device, stages: Sequence[int]) -> list[Alternative]:
        if strategy.engine == "fsdp2" and not strategy.offload_optimizer:
            choice = self.choose(variant, replace(strategy, offload_optimizer=True), device)
            return [Alternative("`parallel.offload: true`", choice)] if choice else []
        if strategy.engine != "deepspeed":
            return []
        options: list[tuple[str, Callable[[Strategy], Strategy]]] = [
            (f"`zero_stage: {stage}`", partial(replace, zero_stage=stage))
            for stage in sorted(stages)
            if stage > strategy.zero_stage
        ]
        if not strategy.offload_optimizer:
            options += [
                (
                    f"`zero_stage: {stage}` with `offload_optimizer: true`",
                    partial(replace, zero_stage=stage, offload_optimizer=True),
                )
                for stage in sorted(stages)
                if stage >= max(1, strategy.zero_stage)
            ]
        for change, option in options:
            choice = self.choose(variant, option(strategy), device)
            if choice:
                return [Alternative(change, choice)]  # the first is the least change
        return []

    def _cards(
        self, variant: Variant, strategy: Strategy, device: Device, cards: Sequence[Device]
    ) -> list[Alternative]:
        """The smallest cards that would do, of those that compute in the variant's precision."""
        ways: list[Alternative] = []
        for card in sorted(cards, key=lambda card: (card.memory_bytes, card.name)):
            if len(ways) == MOST_CARDS:
                break
            there = replace(variant, kernels=card.kernels)
            known = card.name != device.name and there in self.library
            if known and (choice := self._choice_if_traceable(there, strategy, card)):
                ways.append(Alternative(f"card {card.name}", choice))
        return ways


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a variant under a strategy, with the allocator of a searcher."""

    searcher: Searcher
    variant: Variant
    strategy: Strategy
    micro_batch: int

    @property
    def predictor(self) -> Predictor:
        """The predictor of the step."""
        return self.searcher.predictor(self.variant, self.strategy, self.micro_batch)


def leanest(steps: Iterable[Step], device: Device) -> tuple[Step, int]:
    """Return the step that needs the least memory of a card, and the bytes of a card on which it would fit."""

    def bound(step: Step) -> int:
        return step.predictor.least_need(device, step.micro_batch)

    best, *others = sorted(steps, key=bound)
    least = best.predictor.need(device, best.micro_batch)
    for step in others:
        if bound(step) >= least:
            break
        need = step.predictor.need(device, step.micro_batch)
        if need < least:
            best, least = step, need
    return best, least


def in_order(variant: Variant, attentions: Sequence[str], checkpointings: Sequence[bool]) -> list[Variant]:
    """Return the variants that a spec allows, best first. Those with checkpointing come last, because it costs a second
    forward pass of the whole model.
    """
    return [
        replace(variant, activation_checkpointing=checkpointed, attention_memory=attention)
        for checkpointed in checkpointings
        for attention in attentions
    ]


def describe(old: Variant, new: Variant) -> str | None:
    """Return the one setting that differs, as a spec has it; None if there is no difference, or more than one."""
    changes = []
    if new.precision != old.precision:
        changes.append(f"`precision: {new.precision}`")
    if new.activation_checkpointing != old.activation_checkpointing:
        changes.append(f"`activation_checkpointing: {str(new.activation_checkpointing).lower()}`")
    if new.image_size != old.image_size:
        first, *others = new.image_size
        cube = all(side == first for side in others)
        changes.append(f"`image_size: {first}`" if cube else f"`image_size: {list(new.image_size)}`")
    if new.attention_memory != old.attention_memory:
        changes.append(f"`attention_memory: {new.attention_memory}`")
    same = new.engine == old.engine and new.kernels == old.kernels
    return changes[0] if len(changes) == 1 and same else None
