"""Predicts the largest micro-batch of a plan that leaves it open: traces the model and replays the card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ratc import elastic
from ratc.catalog import optimizers
from ratc.catalog.alloc_conf import EXPANDABLE
from ratc.diagnostics import Diagnostic, Severity, did_you_mean
from ratc.fitting import cluster_facts, strategies
from ratc.fitting.checkpointing import Smallest, choose, smallest
from ratc.fitting.nothing_fits import of_auto, too_large, why_nothing
from ratc.fitting.open_batch import leaves_open
from ratc.fitting.plan_step import (
    STAGES,
    asked_allocator,
    device_of,
    fsdp2,
    leanest,
    leanest_of,
    own_searcher,
    own_stages,
    strategy_of,
    under,
    variants,
)
from ratc.fitting.traces import Library, NoTrace
from ratc.memory.allocators import Taken, searchers
from ratc.memory.choose import Choice, Searcher, Variant
from ratc.memory.decision import Decision, Unit
from ratc.memory.given import choice_of
from ratc.memory.rat import full_at_least, maps_alone
from ratc.memory.request import variant
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy
from ratc.plan import Plan
from ratc.resolve import sharding
from ratc.resolve.context import Context
from ratc.units import size_text

#: The codes for a model with an output that its task cannot use, or that normalises one value of each sample, for wrap
#: names that match nothing, and for a value that a config does not have: at any micro-batch.
NO_USE = ("R237", "R366", "R574", "R575")


def decide(plan: Plan, folder: str) -> tuple[Decision | None, tuple[Diagnostic, ...]]:
    """Return the decision for a plan with an open micro-batch; None if there is no trace (a warning) or nothing fits.

    ``folder`` is the spec's. Codes: R315 and R316 (as warnings), R237, R317, R366, R574, R575.
    """
    values, settings = plan.values, plan.settings
    device = device_of(plan)
    library = Library(plan, folder, settings["model.name"].span)
    share = values["training.global_batch_size"].value // values["parallel.world_size"].value
    allowed_allocators = searchers(library, share, asked_allocator(plan))
    strategy = strategy_of(plan)
    stages, sets = own_stages(plan), dict[str, Smallest | None]()
    try:
        allowed = variants(plan, device)
        check_units(plan, next(iter(allowed_allocators.values())), allowed[0], share)

        def chosen(one: strategies.Candidate) -> Taken | None:
            taken, sets[one.name] = choose(allowed_allocators, one.variants, one.strategy, device, one.stages)
            return taken

        compared = _compared(plan, device, allowed_allocators, chosen)
        if compared is not None:
            best, of_best, why = compared
            searcher = allowed_allocators[of_best.allocator]
            made = _decision(plan, searcher, of_best, sets[best.name], list(best.variants), best.strategy)
            return replace(made, strategy=best.name, strategy_reason=why), ()
        own = strategies.Candidate("", strategy, allowed, stages)
        taken = chosen(own)
        if taken:
            searcher = allowed_allocators[taken.allocator]
            return _decision(plan, searcher, taken, sets[own.name], allowed, strategy), ()
        found = why_nothing(allowed_allocators, library, plan, leanest_steps(plan, device), device)
        return None, (too_large(found, plan, of_auto(plan, found.estimate.strategy)),)
    except NoTrace as stopped:
        return None, (*_untraced(stopped), *_unchosen(plan, stopped))


def _compared(
    plan: Plan,
    device: Device,
    allowed: Mapping[str, Searcher],
    chosen: Callable[[strategies.Candidate], Taken | None],
    unfit: str = "does not fit",
) -> tuple[strategies.Candidate, Taken, str] | None:
    """Return the strategy that `auto` takes, its choice, and the reason; None if it has nothing to choose from. For a
    strategy without a choice the reason says that it is ``unfit``.
    """
    nodes = plan.values.get_as(int, "parallel.nodes")
    candidates, left_out = _candidates(plan, device, strategy_of(plan))
    compared = strategies.compare(candidates, allowed, chosen, nodes, cluster_facts.links(plan), unfit)
    if compared is None:
        return None
    best, taken, why = compared
    return best, taken, "; ".join([why, *left_out])


def decide_given(plan: Plan, folder: str) -> tuple[Decision | None, tuple[Diagnostic, ...]]:
    """Return the decision for a plan with a given micro-batch, and with open blocks to recompute for it, or an open
    strategy. None if there is no trace, or if it does not fit at all (warnings). Codes: R315, R316, R374, R375.
    """
    values, device, strategy = plan.values, device_of(plan), strategy_of(plan)
    micro = values.get_as(int, "training.micro_batch_size")
    searcher = own_searcher(plan, Library(plan, folder, plan.settings["model.name"].span))
    plain = variant(plan, device.kernels)
    is_auto = plan.settings["training.activation_checkpointing"].value == "auto"
    # Leaner attention costs no second pass, as recomputing does.
    steps = list(dict.fromkeys([plain, leanest(plan, device, plain)] if is_auto else [plain]))
    why = "it fits"
    try:
        check_units(plan, searcher, replace(plain, engine="torch"), micro)
        for step in steps:
            best = _given_shared(plan, searcher, step, device, micro)
            if best is not None:
                return replace(best, attention_reason=why), ()
            choice = choice_of(searcher, step, strategy, device, micro)
            # The fewest nodes of a range that do not fit are refused by the check of the micro-batch.
            if choice.estimate.fits or (elastic.is_range(plan.settings) and not is_auto):
                units = _units(searcher, step, choice)
                return replace(given_decision(plan, choice, step), attention_reason=why, units=units), ()
            if step == plain:
                need = searcher.predictor(step, strategy, micro).need(device, micro)
                why = f"full attention needs {size_text(need)} at micro-batch {micro} and does not fit"
        if not is_auto:
            return None, ()
        least = _least_given(plan, searcher, steps[-1], device, micro)
        if least is None:
            return None, (_not_enough(plan, micro, device),)
        return replace(least, attention_reason=why), ()
    except NoTrace as stopped:
        return None, (*_unchecked(stopped), *_unchosen(plan, stopped))


def _least_given(plan: Plan, searcher: Searcher, step: Variant, device: Device, micro_batch: int) -> Decision | None:
    """Return the decision with the fewest blocks recomputed that a given micro-batch fits with, under the strategy of
    the spec, or under the best one if it leaves several open; None if it does not fit with all of them.
    """
    allocator, own = plan.values.get_as(str, "training.allocator"), strategy_of(plan)
    sets: dict[str, Smallest] = {}

    def chosen(one: strategies.Candidate) -> Taken | None:
        shares = [replace(one.strategy, zero_stage=stage) for stage in one.stages]
        used = under(one.strategy, step)
        found = [(smallest(searcher, used, share, device, micro_batch), share) for share in shares]
        fitting = [(least, share) for least, share in found if least is not None]
        if not fitting:
            return None
        least, share = min(fitting, key=lambda one: len(one[0].recomputed))  # of equals the lowest stage
        sets[one.name] = least
        choice = choice_of(searcher, least.variant, share, device, micro_batch)
        return Taken(least.variant, choice, allocator, "")

    name, why = "", ""
    if _candidates(plan, device, own)[0]:
        compared = _compared(plan, device, {allocator: searcher}, chosen)
        taken = compared[1] if compared else None
        name, why = (compared[0].name, compared[2]) if compared else (name, why)
    else:
        taken = chosen(strategies.Candidate("", own, [step], (own.zero_stage,)))
    if taken is None:
        return None
    plain, share = replace(taken.variant, activation_checkpointing=False), taken.choice.estimate.strategy
    return replace(
        given_decision(plan, taken.choice, taken.variant),
        plain_need_bytes=searcher.predictor(plain, share, micro_batch).need(device, micro_batch),
        plain_micro_batch=micro_batch,
        recomputed=sets[name].recomputed,
        blocks=sets[name].blocks,
        longer=sets[name].longer,
        strategy=name,
        strategy_reason=why,
        units=_units(searcher, taken.variant, taken.choice),
    )


def given_decision(plan: Plan, choice: Choice, step: Variant) -> Decision:
    """Return the decision for a micro-batch that the spec gives, in a step of the plan, with the plan's allocator."""
    return Decision(
        choice,
        step.attention_memory,
        activation_checkpointing=step.activation_checkpointing,
        allocator=plan.values.get_as(str, "training.allocator"),
        is_given=True,
    )


def _given_shared(plan: Plan, searcher: Searcher, plain: Variant, device: Device, micro_batch: int) -> Decision | None:
    """Return the decision for the best strategy that a given micro-batch fits with; None if it fits with none, or if
    the spec leaves none open.
    """
    allocator = plan.values.get_as(str, "training.allocator")

    def chosen(one: strategies.Candidate) -> Taken | None:
        step = replace(plain, engine=one.variants[0].engine)
        shares = (replace(one.strategy, zero_stage=stage) for stage in one.stages)
        choices = (choice_of(searcher, step, share, device, micro_batch) for share in shares)
        fitting = next((choice for choice in choices if choice.estimate.fits), None)
        return Taken(step, fitting, allocator, "") if fitting else None

    is_auto = plan.settings["training.activation_checkpointing"].value == "auto"
    unfit = f"does not fit{' without recomputation' if is_auto else ''}"
    compared = _compared(plan, device, {allocator: searcher}, chosen, unfit)
    if compared is None:
        return None
    best, taken, why = compared
    found = given_decision(plan, taken.choice, plain)
    return replace(found, strategy=best.name, strategy_reason=why, units=_units(searcher, taken.variant, taken.choice))


def _untraced(stopped: NoTrace) -> tuple[Diagnostic, ...]:
    measure = "measure it on its card: `ratc profile SPEC --measure -o FACTS`, then compile with `--facts FACTS`"
    return tuple(
        item if item.code in NO_USE else replace(item, severity=Severity.WARNING, helps=(*item.helps, measure))
        for item in stopped.found
    )


def _unchecked(stopped: NoTrace) -> tuple[Diagnostic, ...]:
    return tuple(
        replace(item, message=f"the micro-batch is not checked: {item.message}") if item.code == "R316" else item
        for item in _untraced(stopped)
    )


def _not_enough(plan: Plan, micro: int, device: Device) -> Diagnostic:
    """Return a warning that a given micro-batch does not even fit if every block is recomputed. Code: R375."""
    asked = plan.settings["training.activation_checkpointing"]
    message = (
        f"`activation_checkpointing: auto` recomputes nothing: micro-batch {micro} does not fit on {device.name} "
        "even if every block is recomputed"
    )
    helps = ("use a smaller micro-batch",) if micro > 1 else ()
    return Diagnostic("R375", message, asked.span, helps=helps, severity=Severity.WARNING)


def _unchosen(plan: Plan, stopped: NoTrace) -> tuple[Diagnostic, ...]:
    """Return a warning that blocks cannot be chosen without a trace, if the spec leaves them to ratc. Code: R374."""
    asked = plan.settings["training.activation_checkpointing"]
    if asked.value != "auto" or any(item.code in NO_USE for item in stopped.found):
        return ()
    message = "`activation_checkpointing: auto` recomputes nothing: the step of the model cannot be traced"
    helps = ("set it to `true` or `false`",)
    return (Diagnostic("R374", message, asked.span, helps=helps, severity=Severity.WARNING),)


def decide_like(plan: Plan, folder: str, chosen: Decision) -> Decision | tuple[Diagnostic, ...]:
    """Return the decision for a plan of another number of processes, with all that another decision chose but the
    micro-batch; or the findings if nothing fits or there is no trace. Codes: R315, R316, R317.
    """
    device, wanted = device_of(plan), strategy_like(plan, chosen)
    library = Library(plan, folder, plan.settings["model.name"].span)
    share = plan.values.get_as(int, "training.global_batch_size") // wanted.world_size
    searcher = Searcher(library, share, expandable=chosen.allocator == EXPANDABLE)
    used = replace(
        under(wanted, variants(plan, device)[0]),
        attention_memory=chosen.attention_memory,
        activation_checkpointing=chosen.activation_checkpointing,
    )
    given = None if leaves_open(plan.settings) else plan.values.get_as(int, "training.micro_batch_size")
    try:
        choice = searcher.choose(used, wanted, device) if given is None else None
        if given is not None:  # checked for the fewest nodes, whose processes have the most to hold
            choice = choice_of(searcher, used, wanted, device, given)
        if choice is not None:
            return replace(chosen, choice=choice)
        found = why_nothing({chosen.allocator: searcher}, library, plan, [(used, wanted)], device)
        return (too_large(found, plan),)
    except NoTrace as stopped:
        return stopped.found


def strategy_like(plan: Plan, chosen: Decision) -> Strategy:
    """Return the strategy of a decision for a plan of another number of processes."""
    strategy = chosen.choice.estimate.strategy
    if strategy.engine != "fsdp2":
        return replace(strategy, world_size=plan.values.get_as(int, "parallel.world_size"))
    size = sharding.group(Context(plan.settings, plan.facts, None, dict(plan.values)))
    assert size is not None, "a plan without a mesh is not a plan"
    return fsdp2(plan, size)


def _decision(
    plan: Plan,
    searcher: Searcher,
    taken: Taken,
    least: Smallest | None,
    allowed: list[Variant],
    strategy: Strategy,
) -> Decision:
    """Return the decision, with the bytes that the rejected settings would have needed at micro-batch 1."""
    used, device = taken.variant, taken.choice.estimate.device

    def need(passed: Variant) -> int:
        return searcher.predictor(passed, strategy, 1).need(device, 1)

    plainly = used if least is None else replace(used, activation_checkpointing=False)
    full = replace(plainly, attention_memory="full")
    why = "it fits"
    if taken.full:
        micro, most = taken.choice.estimate.micro_batch, taken.full.estimate.micro_batch
        why = f"micro-batch {micro} fits with it, {most} with full attention"
    elif plainly != full and full in allowed:
        why = f"full attention needs {size_text(need(full))} at micro-batch 1 and does not fit"
    elif plainly != full:
        why = maps_alone(full_at_least(plan.settings), device.memory_bytes, 1)
    # Of the steps without checkpointing the last is the leanest.
    plain = [one for one in allowed if not one.activation_checkpointing][-1:] if used.activation_checkpointing else []
    return Decision(
        taken.choice,
        used.attention_memory,
        why,
        used.activation_checkpointing,
        need(plain[0]) if plain else None,
        recomputed=least.recomputed if least else (),
        blocks=least.blocks if least else 0,
        longer=least.longer if least else "",
        allocator=taken.allocator,
        allocator_reason=taken.reason,
        units=_units(searcher, used, taken.choice),
    )


def _units(searcher: Searcher, used: Variant, choice: Choice) -> tuple[Unit, ...]:
    """Return the units of FSDP2 in the traced step of a choice; none with another strategy."""
    estimate = choice.estimate
    if estimate.strategy.engine != "fsdp2":
        return ()
    return strategies.units(searcher.predictor(used, estimate.strategy, estimate.micro_batch).trace, estimate.strategy)


def check_units(plan: Plan, searcher: Searcher, wanted: Variant, micro_batch: int) -> None:
    """Raise NoTrace with R366 if the spec has FSDP2 wrap classes that no module of the traced model has."""
    settings = plan.settings
    asked = settings["parallel.wrap"]
    if asked.value == "auto" or settings["parallel.strategy"].value not in ("fsdp2", "auto"):
        return
    world = plan.values.get_as(int, "parallel.world_size")
    strategy, step = fsdp2(plan, world), replace(wanted, engine="torch")
    known = sorted(set(searcher.predictor(step, strategy, micro_batch).trace.classes.values()))
    missing = [name for name in asked.value if name not in known]
    if missing and known:
        message = f"`wrap` names classes of no module inside the model, or of lists only: {', '.join(missing)}"
        helps = did_you_mean(missing[0], known) or (f"there are {', '.join(known)[:300]}",)
        raise NoTrace((Diagnostic("R366", message, asked.span, helps=helps),))


def _candidates(plan: Plan, device: Device, own: Strategy) -> tuple[list[strategies.Candidate], list[str]]:
    """Return the strategies that `auto` may take, the simplest first, and why others are left out; nothing if the spec
    names one, or if there is only one process.
    """
    settings, values = plan.settings, plan.values
    if settings["parallel.strategy"].value != "auto" or own.world_size == 1:
        return [], []
    steps = [replace(one, engine="torch") for one in variants(plan, device)]
    found = [strategies.Candidate("ddp", Strategy("torch", own.world_size, precision=own.precision), steps)]
    context = Context(settings, plan.facts, None, dict(values))
    size, left_out = sharding.group(context), []
    odd = next((why for _, why, _ in sharding.conflicts(context)), None)
    if size is None or odd is not None:
        left_out.append(f"fsdp2 is left out: {odd or 'there is only one group of shards'}")
    else:
        found.append(strategies.Candidate("fsdp2", fsdp2(plan, size), steps))
    stage, is_range = settings["training.zero_stage"].value, elastic.is_range(settings)
    stages = STAGES if stage is None else (int(stage),)
    if why := _without_zero(plan, stages):
        return found, [*left_out, f"deepspeed is left out: {why}"]
    offload = bool(settings["training.offload_optimizer"].value)
    strategy = Strategy("deepspeed", own.world_size, stages[0], offload, own.precision, round_robin=not is_range)
    theirs = [replace(one, engine="deepspeed") for one in steps]
    found.append(strategies.Candidate("deepspeed", strategy, theirs, stages, converts=is_range))
    return found, left_out


def leanest_steps(plan: Plan, device: Device, is_settled: bool = False) -> list[tuple[Variant, Strategy]]:
    """Return the leanest steps of each strategy and ZeRO stage that a plan may take; of a plan whose strategy
    ``is_settled`` of its own. They keep the least for attention, and recompute all blocks or none, as the spec allows.
    """
    own = strategy_of(plan)
    found = [] if is_settled else _candidates(plan, device, own)[0]
    found = found or [strategies.Candidate("", own, variants(plan, device), own_stages(plan))]
    return [
        (step, replace(one.strategy, zero_stage=stage))
        for one in found
        for step in leanest_of(one.variants)
        for stage in one.stages
    ]


def _without_zero(plan: Plan, stages: tuple[int, ...]) -> str:
    """Return the reason why `auto` does not consider ZeRO; empty if it does."""
    settings = plan.settings
    optimizer = settings.get_as(str, "training.optimizer")
    if not optimizers.of(optimizer).zero:
        return f"the optimizer is {optimizer}"
    if settings["training.deepspeed"].value is False:
        return "`deepspeed` is false"
    if not settings["training.use_accelerate"].value:
        return "`use_accelerate` is false"
    return "stage 0 does not go with a range of nodes" if elastic.is_range(settings) and stages == (0,) else ""
