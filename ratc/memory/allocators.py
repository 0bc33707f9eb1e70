"""The choice between both allocators: expandable segments are taken only if more fits, or with a lower ZeRO stage.

Most runs use native segments, so they are kept if both give the same. Expandable segments cost no computation, and so
come before checkpointing and before attention without maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ratc.catalog.alloc_conf import EXPANDABLE, NATIVE
from ratc.memory.choose import Choice, Library, Searcher, Variant
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy


@dataclass(frozen=True, slots=True)
class Taken:
    """The first variant that fits, its choice, and the allocator with the reason for it."""

    variant: Variant
    choice: Choice
    allocator: str
    reason: str
    #: The choice with full attention, if fused attention is taken because it gives more.
    full: Choice | None = None


def searchers(library: Library, share: int, asked: str) -> dict[str, Searcher]:
    """Return a searcher for each allocator that the spec allows (`auto`: both); they share the traces.

    ``share`` is the number of samples of one rank in an optimizer step.
    """
    allowed = (NATIVE, EXPANDABLE) if asked == "auto" else (asked,)
    return {allocator: Searcher(library, share, expandable=allocator == EXPANDABLE) for allocator in allowed}


def choose(
    allowed: Mapping[str, Searcher],
    variants: Sequence[Variant],
    strategy: Strategy,
    device: Device,
    stages: Iterable[int],
) -> Taken | None:
    """Return the first of the variants that fits with any allowed allocator, at the stage of `Searcher.choose_stage`;
    None if none fits.

    Fused attention replaces full attention if it gives a larger micro-batch or a lower stage. That it costs no time is
    an assumption, not measured.
    """
    stages = tuple(stages)
    taken: Taken | None = None
    for variant in variants:
        if taken and (_least(taken.choice, stages) or variant != replace(taken.variant, attention_memory="fused")):
            break
        may_recompute = not variant.activation_checkpointing and any(one.activation_checkpointing for one in variants)
        found = _with_best_allocator(allowed, variant, strategy, device, stages, may_recompute)
        if taken is None:
            taken = found
        elif found and _cost(found.choice) < _cost(taken.choice):
            taken = replace(found, full=taken.choice)
    return taken


def _with_best_allocator(
    allowed: Mapping[str, Searcher],
    variant: Variant,
    strategy: Strategy,
    device: Device,
    stages: tuple[int, ...],
    may_recompute: bool,
) -> Taken | None:
    native = allowed[NATIVE].choose_stage(variant, strategy, device, stages) if NATIVE in allowed else None
    expandable = None
    if EXPANDABLE in allowed and not (native and _least(native, stages)):
        expandable = allowed[EXPANDABLE].choose_stage(variant, strategy, device, stages)
    if expandable and (native is None or _cost(expandable) < _cost(native)):
        return Taken(variant, expandable, EXPANDABLE, _benefit(native, expandable, may_recompute))
    if native:
        what = "raise the micro-batch" + (" or avoid a ZeRO stage" if len(stages) > 1 else "")
        return Taken(variant, native, NATIVE, f"expandable segments would not {what}")
    return None


def _least(choice: Choice, stages: tuple[int, ...]) -> bool:
    """Whether a choice is the whole share at the lowest stage, so that no other allocator can give more."""
    return choice.accumulation == 1 and _stage(choice) == min(stages)


def _stage(choice: Choice) -> int:
    return choice.estimate.strategy.zero_stage


def _cost(choice: Choice) -> tuple[int, int]:
    return choice.accumulation, _stage(choice)


def _benefit(native: Choice | None, expandable: Choice, may_recompute: bool) -> str:
    size = expandable.estimate.micro_batch
    if native is None:
        without = "expandable segments or recomputation" if may_recompute else "expandable segments"
        return f"nothing fits without {without}, with them micro-batch {size} does"
    if expandable.accumulation < native.accumulation:
        return f"with expandable segments micro-batch {size} fits, without them {native.estimate.micro_batch}"
    return f"with expandable segments ZeRO stage {_stage(expandable)} is enough, without them {_stage(native)}"
