"""What to say if nothing fits: the memory of a step, its largest parts, and changes with which it fits."""

from __future__ import annotations

from dataclasses import replace

from ratc import facts
from ratc.catalog.alloc_conf import EXPANDABLE
from ratc.diagnostics import Diagnostic
from ratc.fitting.plan_step import device_for
from ratc.fitting.traces import Library
from ratc.memory.choose import Alternative, DoesNotFit, Searcher, Variant
from ratc.memory.rat import full_at_least, fused_runs_on, without_maps
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy
from ratc.plan import Plan
from ratc.units import size_text

#: Stages that DeepSpeed is used for; the lowest stage that needs no further accumulation is taken.
STAGES = (1, 2, 3)


def why_nothing(
    searcher: Searcher, library: Library, plan: Plan, wanted: Variant, strategy: Strategy, device: Device
) -> DoesNotFit:
    """Return the memory of a step that does not fit, and each single change that makes it fit, all predicted."""
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
    found = searcher.does_not_fit(wanted, strategy, device, devices, stages)
    if searcher.expandable:
        return found
    choice = Searcher(library, searcher.share, searcher.margin, expandable=True).choose(wanted, strategy, device)
    ways = (Alternative(f"`allocator: {EXPANDABLE}`", choice),) if choice else ()
    return replace(found, alternatives=(*ways, *found.alternatives))


def too_large(found: DoesNotFit, plan: Plan) -> Diagnostic:
    device = found.estimate.device
    message = (
        f"nothing fits on {device.name}: micro-batch 1 needs {size_text(found.need_bytes)}, "
        f"the card has {size_text(device.memory_bytes)}"
    )
    largest = ", ".join(f"{name or 'the model'} {size_text(size)}" for name, size in found.breakdown.largest())
    helps = tuple(
        f"would fit with {way.change}: up to micro-batch {way.choice.estimate.micro_batch}, "
        f"{size_text(way.choice.estimate.predicted_bytes)} predicted"
        for way in found.alternatives
    )
    span = plan.settings["resources.gpu"].span or plan.settings["model.name"].span
    return Diagnostic("R317", message, span, (f"largest: {largest}",), helps)
