"""A plan's step as a prediction needs it: its card, its strategy, its variants, its allocator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ratc import elastic, facts
from ratc.catalog.alloc_conf import EXPANDABLE, NATIVE, by_variables, fraction
from ratc.fitting.open_batch import leaves_open
from ratc.fitting.traces import Library
from ratc.memory.choose import Searcher, Variant, in_order
from ratc.memory.rat import full_at_least, without_maps, without_prediction
from ratc.memory.request import variant
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy
from ratc.plan import Plan

#: Stages that DeepSpeed is used for; the lowest stage that needs no further accumulation is taken.
STAGES = (1, 2, 3)


def device_of(plan: Plan) -> Device:
    """Return the plan's card as a device, with the fraction of its memory that a process may reserve."""
    hardware = {key: plan.values[f"hardware.{key}"].value for key in ("card", "memory_bytes", "compute_capability")}
    return Device(hardware["card"], hardware["memory_bytes"], hardware["compute_capability"], _fraction(plan))


def device_for(plan: Plan, card: facts.Card) -> Device:
    """Return another card as a device, with the plan's fraction of the memory that a process may reserve."""
    return Device(card.id, card.memory_bytes, card.compute_capability, _fraction(plan))


def _fraction(plan: Plan) -> float:
    return fraction(plan.variables)


def strategy_of(plan: Plan) -> Strategy:
    """Return the strategy by which the plan spreads a step over its processes."""
    values = plan.values
    if "fsdp2.shard_size" in values:
        return fsdp2(plan, values.get_as(int, "fsdp2.shard_size"))
    return Strategy(
        "deepspeed" if values["engine.deepspeed"].value else "torch",
        values.get_as(int, "parallel.world_size"),
        values.get_as(int, "engine.zero_stage"),
        bool(values["engine.offload_optimizer"].value),
        values.get_as(str, "training.precision"),
        round_robin=not elastic.is_range(plan.settings),
    )


def own_stages(plan: Plan) -> tuple[int, ...]:
    """Return the ZeRO stages that the plan may take; 0 stands for no ZeRO, too."""
    if not plan.values["engine.deepspeed"].value:
        return (0,)
    is_settled = plan.settings["training.zero_stage"].value is not None or not leaves_open(plan.settings)
    if is_settled or plan.settings["parallel.strategy"].value == "auto":
        return (plan.values.get_as(int, "engine.zero_stage"),)
    return STAGES


def fsdp2(plan: Plan, size: int) -> Strategy:
    """Return FSDP2 as the spec asks for it, in groups of ``size`` processes."""
    settings, wrap = plan.settings, plan.settings["parallel.wrap"].value
    return Strategy(
        "fsdp2",
        plan.values.get_as(int, "parallel.world_size"),
        0,
        bool(settings["parallel.offload"].value),
        plan.values.get_as(str, "training.precision"),
        shard=settings.get_as(str, "parallel.shard"),
        shards=size,
        wrap=None if wrap == "auto" else tuple(wrap),
        gathered=settings.get_as(str, "parallel.mixed_precision"),
    )


def asked_allocator(plan: Plan) -> str:
    """Return the allocator of the spec, by its key or by a variable of its environment; `auto` leaves it open. A
    prediction for a given micro-batch does not choose it: that is the plan's.
    """
    if not leaves_open(plan.settings):
        return plan.values.maybe(str, "training.allocator") or NATIVE
    asked = plan.settings.get_as(str, "training.allocator")
    return asked if asked != "auto" else by_variables(plan.variables) or asked


def own_searcher(plan: Plan, library: Library) -> Searcher:
    """Return a searcher with the plan's own allocator and share of the global batch (samples of one rank and step)."""
    share = plan.values.get_as(int, "training.global_batch_size") // plan.values.get_as(int, "parallel.world_size")
    return Searcher(library, share, expandable=plan.values["training.allocator"].value == EXPANDABLE)


def variants(plan: Plan, device: Device, precision: str | None = None) -> list[Variant]:
    """Return the variants of the plan's step on a card, best first: one for each attention and checkpointing that the
    spec allows. ``precision`` replaces the plan's.
    """
    wanted = variant(plan, device.kernels)
    if precision is not None:
        wanted = replace(wanted, precision=precision)
    asked = plan.settings["training.activation_checkpointing"].value
    return in_order(wanted, _attentions(plan, device), (False, True) if asked == "auto" else (bool(asked),))


def _attentions(plan: Plan, device: Device) -> tuple[str, ...]:
    """Return the attentions that the spec allows on a card, without full attention if a bound excludes it."""
    asked, least = plan.settings.get_as(str, "model.attention_memory"), full_at_least(plan.settings)
    if not least:
        return ("full",)
    if asked != "auto":
        return (asked,)
    lean = without_maps(device.compute_capability or "0.0")
    return ("full", lean) if least <= device.memory_bytes else (lean,)


def with_micro_batch(plan: Plan, device: Device, wanted: Variant, micro_batch: int) -> Variant:
    """Return the plan's variant for another micro-batch in its spec, on which `auto` attention depends."""
    if plan.settings["model.attention_memory"].value != "auto":
        return wanted
    capability = device.compute_capability or "0.0"
    attention = without_prediction(plan.settings, micro_batch, device.memory_bytes, capability)
    return replace(wanted, attention_memory=attention)


def under(strategy: Strategy, step: Variant) -> Variant:
    """Return a step with the engine of a strategy."""
    return replace(step, engine="deepspeed" if strategy.engine == "deepspeed" else "torch")


def leanest_of(variants: Sequence[Variant]) -> list[Variant]:
    """Return those of a plan's variants whose attention keeps the least memory."""
    return [one for one in variants if one.attention_memory == variants[-1].attention_memory]


def leanest(plan: Plan, device: Device, step: Variant) -> Variant:
    """Return a step with the attention that keeps the least memory, if the spec leaves it open."""
    return replace(step, attention_memory=_attentions(plan, device)[-1])
