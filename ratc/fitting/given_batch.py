"""Judges a micro-batch that the spec gives, by a measurement or a prediction, and words the finding."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ratc import elastic
from ratc.diagnostics import Diagnostic, Severity
from ratc.fitting import from_measurement, nothing_fits, plan_step, predict
from ratc.fitting.traces import Library, NoTrace
from ratc.memory import given, measured
from ratc.memory.choose import Alternative, Choice, Searcher, Step, Variant, leanest
from ratc.memory.given import Verdict
from ratc.memory.request import variant
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy
from ratc.plan import Plan
from ratc.units import counted, size_text, two_sizes

_STRATEGY, _CHECKPOINTING = "parallel.strategy", "training.activation_checkpointing"


def judge(plan: Plan, folder: str) -> tuple[Verdict | None, str]:
    """Return the verdict on the plan's own micro-batch and ""; or None and the reason. ``folder`` is the spec's.

    Raises NoTrace if the model cannot be built or called (R316) or has a wrong value (R237), if the task cannot use its
    output, if a layer normalises one value of each sample, or if wrap names match nothing.
    """
    device, strategy = plan_step.device_of(plan), plan_step.strategy_of(plan)
    wanted = variant(plan, device.kernels)
    micro = plan.values.get_as(int, "training.micro_batch_size")
    share = plan.values.get_as(int, "training.global_batch_size") // strategy.world_size
    facts = plan.facts.get("measured")
    entries = [measured.read(entry) for entry in facts.value] if facts is not None and facts.value else []
    found = from_measurement.matching(entries, from_measurement.conditions(plan, wanted, folder)) if entries else None
    verdict = given.by_measurement(found, share, device, strategy, micro) if found else None
    if verdict is not None:
        return verdict, ""
    searcher = plan_step.own_searcher(plan, Library(plan, folder, plan.settings["model.name"].span))
    try:
        predict.check_units(plan, searcher, wanted, micro)
        verdict = _predicted(plan, searcher, wanted, strategy, device)
        open_ = [plan.settings[path].value == "auto" for path in (_STRATEGY, _CHECKPOINTING)]
        if verdict.fits or verdict.is_tight or not any(open_):
            return verdict, ""
        # Nothing that is left to ratc fits: what needs the least is told. The lock does not take it, so that a tight
        # fit does not count.
        recomputed = (False, True) if open_[1] else (wanted.activation_checkpointing,)
        strategies = [one for _, one in predict.leanest_steps(plan, device)] if open_[0] else [strategy]
        steps = [
            Step(searcher, plan_step.under(one, replace(wanted, activation_checkpointing=how)), one, micro)
            for one in dict.fromkeys(strategies)
            for how in recomputed
        ]
        least, _ = leanest(steps, device)
        return replace(_predicted(plan, searcher, least.variant, least.strategy, device), is_tight=False), ""
    except NoTrace as stopped:
        if any(item.code in (*predict.NO_USE, "R316") for item in stopped.found):
            raise
        return None, "; ".join(item.message for item in stopped.found)


def _predicted(plan: Plan, searcher: Searcher, wanted: Variant, strategy: Strategy, device: Device) -> Verdict:
    """Return the verdict of a prediction on the plan's micro-batch, in a step and under a strategy."""
    micro = plan.values.get_as(int, "training.micro_batch_size")
    higher = [stage for stage in plan_step.STAGES if strategy.engine == "deepspeed" and stage > strategy.zero_stage]
    ways = [replace(one, engine=wanted.engine) for one in plan_step.variants(plan, device)]

    def with_size(size: int) -> Variant:
        return wanted if size == micro else plan_step.with_micro_batch(plan, device, wanted, size)

    others = [one for one in ways if one != wanted]
    return given.predicted(searcher, with_size, strategy, device, micro, higher, others)


def findings(verdict: Verdict, plan: Plan, folder: str) -> tuple[Diagnostic, ...]:
    """Return the findings of a verdict: none if the micro-batch fits and leaves the margin free. Code: R318."""
    if verdict.fits:
        return ()
    found, settings = verdict.choice.estimate, plan.settings
    device = found.device
    span = settings["training.batch_size"].span or settings["training.gradient_accumulation_steps"].span
    source = "measured" if verdict.measured else "predicted"
    helps = [_smaller(verdict.largest, plan)] if verdict.largest else []
    helps += [_way(way.change, way.choice) for way in verdict.ways]
    if verdict.is_tight:
        used, has = two_sizes(found.predicted_bytes, device.memory_bytes)
        message = (
            f"micro-batch {found.micro_batch} fits on {device.name} only within the margin: "
            f"{used} {source}, the card has {has}"
        )
        note = (
            f"{found.margin:.1%} of the memory that the allocator may reserve should stay free as the margin of "
            "the prediction"
        )
        return (Diagnostic("R318", message, span, (note,), tuple(helps), Severity.WARNING),)
    needed, has = two_sizes(verdict.need_bytes, device.memory_bytes)
    message = (
        f"micro-batch {found.micro_batch} does not fit on {device.name}: "
        f"it needs a card of {needed}, and this one has {has}"
    )
    beside = device.memory_bytes - found.budget_bytes
    # With less memory the allocator gives cached blocks back: it must reserve less than the peak without a cap.
    left = verdict.need_bytes - beside
    least = round(left * (1 - found.margin))
    free = left - least
    need, reserved = size_text(verdict.need_bytes), size_text(least)
    notes = [
        f"{need} is {reserved} that the allocator has to reserve ({source}), "
        f"{size_text(beside)} beside it (driver, CUDA context, NCCL), and {size_text(free)} kept free as a margin",
        f"on this card the allocator may reserve {size_text(found.cap_bytes)}",
    ]
    notes += nothing_fits.of_auto(plan, found.strategy)
    if elastic.is_range(settings):
        nodes = plan.values.get_as(int, "parallel.nodes")
        notes.append(f"that is on {counted(nodes, 'node')}, the fewest of the range")
    if verdict.choice.breakdown.by_module:
        largest = verdict.choice.breakdown.largest()
        notes.append("largest: " + ", ".join(f"{name or 'the model'} {size_text(size)}" for name, size in largest))
    if verdict.largest is None and verdict.measured is None:
        known = {way.change for way in verdict.ways}
        helps += [_way(way.change, way.choice, "up to micro-batch") for way in _without(plan, folder, known)]
    helps.append("or compile without this check: `--no-predict`")
    return (Diagnostic("R318", message, span, tuple(notes), tuple(helps)),)


def _smaller(largest: Choice, plan: Plan) -> str:
    """Return a help with the largest micro-batch that fits, in the keys of a spec with the same global batch."""
    micro, accumulation = largest.estimate.micro_batch, largest.accumulation
    settings = plan.settings
    keys = []
    if settings["training.batch_size"].value is not None:
        keys.append(f"`batch_size: {micro}`")
    accumulates = settings["training.gradient_accumulation_steps"].value is not None
    if accumulates or settings["training.target_batch_size"].value is None:
        keys.append(f"`gradient_accumulation_steps: {accumulation}`")
    return f"use {' with '.join(keys)}: micro-batch {micro} fits, {size_text(largest.estimate.predicted_bytes)} in use"


def _without(plan: Plan, folder: str, known: Collection[str]) -> list[Alternative]:
    """Return single changes with which the micro-batch or a larger one fits, beside the ``known`` ones."""
    device, strategy = plan_step.device_of(plan), plan_step.strategy_of(plan)
    library = Library(plan, folder, None)
    wanted = variant(plan, device.kernels)
    try:
        searcher = plan_step.own_searcher(plan, library)
        open_ = [plan.settings[path].value == "auto" for path in (_STRATEGY, _CHECKPOINTING)]
        steps = predict.leanest_steps(plan, device, is_settled=not open_[0]) if any(open_) else [(wanted, strategy)]
        allowed = {plan.values.get_as(str, "training.allocator"): searcher}
        found = nothing_fits.why_nothing(allowed, library, plan, steps, device)
    except NoTrace:
        return []
    micro = plan.values.get_as(int, "training.micro_batch_size")
    return [way for way in found.alternatives if way.change not in known and way.choice.estimate.micro_batch >= micro]


def _way(change: str, choice: Choice, which: str = "micro-batch") -> str:
    found = choice.estimate
    return f"would fit with {change}: {which} {found.micro_batch}, {size_text(found.predicted_bytes)} predicted"
