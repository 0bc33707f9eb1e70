"""Selects the measurements of a facts file that are of a plan's step, and decides the micro-batch from one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from ratc.catalog.alloc_conf import NATIVE
from ratc.diagnostics import Diagnostic, Severity
from ratc.fitting import plan_step, predict
from ratc.fitting.open_batch import leaves_open
from ratc.memory import measured
from ratc.memory.choose import Variant
from ratc.memory.decision import Decision, Fewest
from ratc.memory.given import by_measurement
from ratc.memory.measured import Conditions, Measurement
from ratc.memory.request import request
from ratc.own_code import digests
from ratc.plan import Plan, Value
from ratc.tracing import fetch

#: Keys of a request's `training` that determine the memory of a step; the rest are numbers, or separate conditions.
_TRAINING = ("optimizer", "compile", "loss")


def decide(plan: Plan, folder: str) -> tuple[Decision | None, tuple[Diagnostic, ...]]:
    """Decide the micro-batch of a plan, and of an elastic plan that of each of its node counts.

    The fewest nodes decide all else, since each of their processes has the most to hold. Codes as `decide_one`.
    """
    if not plan.sizes:
        return decide_one(plan, folder)
    found: dict[int, Decision | Diagnostic] = {}
    told: tuple[Diagnostic, ...] = ()
    first: Decision | None = None
    last: Decision | None = None
    for size in plan.sizes:
        nodes = size.values.get_as(int, "parallel.nodes")
        own, said = decide_one(size, folder) if first is None else decide_like(size, folder, first)
        too_large = next((one for one in said if one.code == "R317"), None)
        if own is not None:
            own = own if first else replace(own, fewest=Fewest(nodes, own.choice))
            first, last = first or own, own
            found[nodes], told = own, told or said
        elif too_large is not None:
            found[nodes] = too_large
        else:
            return None, said
    if last is None:
        return None, tuple(one for one in found.values() if isinstance(one, Diagnostic))[:1]
    return replace(last, sizes=found), told


def decide_like(plan: Plan, folder: str, chosen: Decision) -> tuple[Decision | None, tuple[Diagnostic, ...]]:
    """Decide the micro-batch for another number of processes than that of a decision, and keep the rest of it."""
    if chosen.measured:
        device, strategy = plan_step.device_of(plan), predict.strategy_like(plan, chosen)
        entries = [measured.read(entry) for entry in plan.facts["measured"].value]
        used = replace(
            plan_step.variants(plan, device)[0],
            attention_memory=chosen.attention_memory,
            activation_checkpointing=chosen.activation_checkpointing,
        )
        step = matching(entries, replace(conditions(plan, used, folder), allocator=chosen.allocator))
        share = plan.values.get_as(int, "training.global_batch_size") // strategy.world_size
        choice = None
        if step and leaves_open(plan.settings):
            choice = measured.choose(step, share, device, strategy)
        elif step:
            micro = plan.values.get_as(int, "training.micro_batch_size")
            verdict = by_measurement(step, share, device, strategy, micro)
            choice = verdict.choice if verdict else None
        if choice:
            return replace(chosen, choice=choice), ()
    found = predict.decide_like(plan, folder, chosen)
    return (found, ()) if isinstance(found, Decision) else (None, found)


def decide_one(plan: Plan, folder: str) -> tuple[Decision | None, tuple[Diagnostic, ...]]:
    """Decide the micro-batch from a measurement of the plan's step or, if there is none, from a prediction.

    If the spec gives the micro-batch, only the blocks to recompute are decided.
    Codes: R516 (a warning), and those of `predict.decide`.

    ``folder`` is the spec's. If the spec leaves attention or checkpointing open, the prediction chooses them, unless
    its first choice was measured.
    """
    given = plan.facts.get("measured")
    entries = [measured.read(entry) for entry in given.value] if given is not None and given.value else []
    device, strategy = plan_step.device_of(plan), plan_step.strategy_of(plan)
    share = plan.values.get_as(int, "training.global_batch_size") // strategy.world_size
    first = plan_step.variants(plan, device)[0]
    found = matching(entries, conditions(plan, first, folder))
    if not leaves_open(plan.settings):
        micro = plan.values.get_as(int, "training.micro_batch_size")
        verdict = by_measurement(found, share, device, strategy, micro) if found else None
        if verdict and verdict.fits:
            return replace(predict.given_decision(plan, verdict.choice, first), measured=verdict.measured), ()
        return predict.decide_given(plan, folder)
    if found:
        choice = measured.choose(found, share, device, strategy)
        if choice:
            why = "the step was measured with it"
            allocator = found.conditions.allocator
            taken = Decision(choice, first.attention_memory, why, allocator=allocator, allocator_reason=why)
            return _measured(taken, first, found), ()
    decision, said = predict.decide(plan, folder)
    if decision is None:
        return None, (*said, *_unused(entries, conditions(plan, first, folder), given))
    used = replace(
        first,
        attention_memory=decision.attention_memory,
        activation_checkpointing=decision.activation_checkpointing,
    )
    of_decision = replace(conditions(plan, used, folder), allocator=decision.allocator)
    found = matching(entries, of_decision)
    choice = measured.choose(found, share, device, strategy) if found else None
    if found and choice:
        return _measured(replace(decision, choice=choice), used, found), said
    return decision, (*said, *_unused(entries, of_decision, given))


def conditions(plan: Plan, wanted: Variant, folder: str) -> Conditions:
    """Return the conditions that a measurement of a variant of the plan's step must equal: with native segments, if the
    spec leaves the allocator open.
    """
    asked = plan_step.asked_allocator(plan)
    return Conditions(
        step=step_digest(plan, wanted, folder),
        card=str(plan.values["hardware.card"].value),
        precision=wanted.precision,
        image_size=wanted.image_size,
        attention_memory=wanted.attention_memory,
        activation_checkpointing=wanted.activation_checkpointing,
        engine=wanted.engine,
        allocator=NATIVE if asked == "auto" else asked,
    )


def step_digest(plan: Plan, wanted: Variant, folder: str) -> str:
    """Return the digest of model, loss, optimizer, inputs and the user's own modules: the same on every machine."""
    asked = request(plan, wanted, 1)
    model = {key: value for key, value in asked["model"].items() if key != "attention_memory"}
    training = {key: asked["training"][key] for key in _TRAINING}
    if training["optimizer"] == "sgd":  # without momentum it keeps nothing
        training["momentum"] = asked["training"]["momentum"] > 0
    optional = ("optimizer_args", "frozen", "parameter_groups")
    training |= {key: asked["training"][key] for key in optional if key in asked["training"]}
    clipped = asked["training"]["gradient_clipping"] is not None
    data = {key: asked["data"][key] for key in ("channels", "scales", "num_classes", "ignore_index")}
    data |= {key: asked["data"][key] for key in ("dataset", "args") if key in asked["data"]}
    data |= asked.get("detection", {})
    # The losses of the others tell them apart; this one shares `cross_entropy` with segmentation.
    data |= {"task_type": asked["task_type"]} if asked["task_type"] == "classification" else {}
    whole = hashlib.sha256(json.dumps([model, training, clipped, data], sort_keys=True).encode())
    for path, module in digests.modules(fetch.own_names(asked), folder).items():
        whole.update(f"{path}\0{module.digest.removeprefix('sha256:')}\0".encode())
    return f"sha256:{whole.hexdigest()}"


def matching(entries: list[Measurement], wanted: Conditions) -> Measurement | None:
    """Return the latest measurement of a step; of several on one day, the last in the file."""
    fitting = [one for one in entries if not measured.differences(one.conditions, wanted)]
    return max(reversed(fitting), key=lambda one: one.date, default=None)


def _measured(decision: Decision, used: Variant, found: Measurement) -> Decision:
    return replace(decision, activation_checkpointing=used.activation_checkpointing, measured=found.source)


def _unused(entries: list[Measurement], wanted: Conditions, given: Value | None) -> tuple[Diagnostic, ...]:
    """Return a warning that no measurement is used, with the differences of the nearest. Code: R516."""
    if not entries:
        return ()
    near, reasons = measured.nearest(entries, wanted)
    number = f"none of the {len(entries)} measurements" if len(entries) > 1 else "the measurement"
    span = given.span if given else None
    helps = ("measure this step on its card: `ratc profile SPEC --measure -o FACTS`",)
    if not reasons:
        message = f"the measurement of {near.name} is not used: according to it no micro-batch fits with the margin"
        return (Diagnostic("R516", message, span, (near.source,), helps, Severity.WARNING),)
    subject = "is" if len(entries) > 1 else "is not"
    message = f"{number} of the facts file {subject} of this step; it is not used"
    note = f"the nearest, of {near.name}: " if len(entries) > 1 else f"of {near.name}: "
    return (Diagnostic("R516", message, span, (note + "; ".join(reasons),), helps, Severity.WARNING),)
