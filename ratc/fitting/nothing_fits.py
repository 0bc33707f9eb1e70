"""What to say if nothing fits: the memory of a step, its largest parts, and changes with which it fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ratc import facts
from ratc.catalog.alloc_conf import EXPANDABLE
from ratc.diagnostics import Diagnostic
from ratc.fitting.plan_step import STAGES, device_for
from ratc.fitting.traces import Library
from ratc.memory.choose import MOST_CARDS, Alternative, DoesNotFit, Searcher, Step, Variant, leanest
from ratc.memory.rat import full_at_least, fused_runs_on, without_maps
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy
from ratc.plan import Plan
from ratc.units import size_text, two_sizes


def why_nothing(
    allowed: Mapping[str, Searcher],
    library: Library,
    plan: Plan,
    steps: Sequence[tuple[Variant, Strategy]],
    device: Device,
) -> DoesNotFit:
    """Return the memory of a step that does not fit, and each single change that makes it fit, all predicted.

    Of several ``steps``, each with its strategy, and of the ``allowed`` allocators, the step is the one with the least
    need. A change is told with the allocator that gives the larger micro-batch.
    """
    step, _ = leanest(of_each(allowed, steps), device)
    searcher, wanted, strategy = step.searcher, step.variant, step.strategy
    card = facts.find_card(device.name)
    precisions = [kind for kind in ("bf16", "fp16") if isinstance(card, facts.Card) and getattr(card, kind)][:1]
    full = wanted.attention_memory == "full"
    library.known = [replace(wanted, precision=kind) for kind in precisions if kind != wanted.precision]
    if wanted.activation_checkpointing is not True:
        library.known.append(replace(wanted, activation_checkpointing=True))
    lean = without_maps(device.compute_capability or "0.0")
    if wanted.attention_memory not in (lean, "fused") and full_at_least(plan.settings):
        library.known.append(replace(wanted, attention_memory=lean))
    smaller = [tuple(side * part // 4 // 8 * 8 for side in wanted.image_size) for part in (3, 2, 1)]
    least = 32 if len(wanted.image_size) == 2 else 16
    library.known += [
        replace(wanted, image_size=size)
        for size in smaller
        if min(size) >= least
        if not full or full_at_least(plan.settings, size) <= device.memory_bytes
    ]
    # What one block's maps alone do not fit needs no trace.
    more = max(device.memory_bytes, full_at_least(plan.settings) if full else 0)
    others = [facts.find_card(name) for name in facts.card_names()]
    devices = [
        device_for(plan, other)
        for other in others
        if isinstance(other, facts.Card) and other.compute_capability and other.memory_bytes > more
        if wanted.precision == "fp32" or getattr(other, wanted.precision)
        if wanted.attention_memory != "fused" or fused_runs_on(other.compute_capability)
    ]
    library.known += [replace(wanted, kernels=kind) for kind in sorted({other.kernels for other in devices})]
    stages = (0, *STAGES) if strategy.engine == "deepspeed" else ()
    each = {
        one: one.does_not_fit(wanted, strategy, device, devices, stages, step.micro_batch) for one in allowed.values()
    }
    ways = _larger([way for found in each.values() for way in found.alternatives], device)
    if EXPANDABLE not in allowed:
        other = Searcher(library, searcher.share, searcher.margin, expandable=True)
        choice = other.choose(wanted, strategy, device)
        ways = [*([Alternative(f"`allocator: {EXPANDABLE}`", choice)] if choice else []), *ways]
    return replace(each[searcher], alternatives=tuple(ways))


def of_each(allowed: Mapping[str, Searcher], steps: Iterable[tuple[Variant, Strategy]]) -> list[Step]:
    """Return the steps with each allowed allocator, and each micro-batch that may need the least."""
    return [
        Step(searcher, variant, strategy, micro_batch)
        for variant, strategy in steps
        for searcher in allowed.values()
        for micro_batch in searcher.sizes()
    ]


def _larger(ways: Sequence[Alternative], device: Device) -> list[Alternative]:
    """Return each change once, with its largest micro-batch; of other cards the smallest ones."""
    best: dict[str, Alternative] = {}
    for way in ways:
        known = best.get(way.change)
        if known is None or known.choice.estimate.micro_batch < way.choice.estimate.micro_batch:
            best[way.change] = way
    here = [way for way in best.values() if way.choice.estimate.device == device]
    elsewhere = [way for way in best.values() if way.choice.estimate.device != device]
    return here + sorted(elsewhere, key=lambda way: way.choice.estimate.device.memory_bytes)[:MOST_CARDS]


def of_auto(plan: Plan, strategy: Strategy) -> tuple[str, ...]:
    """Return a note that names the strategy of a finding, if the spec leaves it open."""
    if plan.settings["parallel.strategy"].value != "auto":
        return ()
    stage = f" and ZeRO stage {strategy.zero_stage}" if strategy.engine == "deepspeed" else ""
    name = "ddp" if strategy.engine == "torch" else strategy.engine
    return (f"that is with `strategy: {name}`{stage}, which needs the least",)


def too_large(found: DoesNotFit, plan: Plan, notes: Sequence[str] = ()) -> Diagnostic:
    """Return the finding that not one sample fits, with further notes. Code: R317."""
    device = found.estimate.device
    need, has = two_sizes(found.need_bytes, device.memory_bytes)
    message = (
        f"nothing fits on {device.name}: micro-batch {found.estimate.micro_batch} needs {need}, the card has {has}"
    )
    largest = ", ".join(f"{name or 'the model'} {size_text(size)}" for name, size in found.breakdown.largest())
    helps = tuple(
        f"would fit with {way.change}: up to micro-batch {way.choice.estimate.micro_batch}, "
        f"{size_text(way.choice.estimate.predicted_bytes)} predicted"
        for way in found.alternatives
    )
    span = plan.settings["resources.gpu"].span or plan.settings["model.name"].span
    return Diagnostic("R317", message, span, (*notes, f"largest: {largest}"), helps)
