"""Predicts the largest micro-batch of a spec on each card, its memory, and the breakdown of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ratc import facts, program
from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.fitting import breakdown, given_batch, open_batch, step_time, table
from ratc.fitting.nothing_fits import of_auto, of_each, why_nothing
from ratc.fitting.plan_step import asked_allocator, device_for, variants
from ratc.fitting.predict import check_units, leanest_steps
from ratc.fitting.question import Question, cards_of, on_a_card, precisions_of
from ratc.fitting.traces import Library, NoTrace
from ratc.memory.allocators import Taken, searchers
from ratc.memory.choose import Choice, Searcher, leanest
from ratc.plan import Plan, Values
from ratc.render.fit import Row
from ratc.render.timeline import Drawing
from ratc.workflow import inputs
from ratc.workflow.request import CompileRequest

#: The codes of a plan with which nothing fits.
_NOTHING_FITS = ("R317", "R318", "R369")


@dataclass(frozen=True)
class Fitted:
    """A row for each card, precision and ZeRO stage; ``plan`` is None if ``found`` says why there is no prediction.

    ``details`` are lines about the first card, ``drawing`` is one step's memory there, and ``span`` the model's name.
    """

    rows: tuple[Row, ...]
    found: tuple[Diagnostic, ...]
    plan: Plan | None = None
    details: tuple[str, ...] = ()
    drawing: Drawing | None = None
    span: Span | None = None


def fit(request: CompileRequest, question: Question, details: bool = False) -> Fitted:
    """Predict the step of a spec on the question's cards, without a GPU. Codes: those of reading and resolving a spec,
    R401, and R301, R315 and R316 if the model cannot be traced.
    """
    if refused := inputs.known_target(request.target):
        return Fitted((), refused)
    loaded = inputs.load(request)
    if loaded.settings is None:
        return Fitted((), loaded.diagnostics)
    if refused := program.unpredictable(loaded.settings):
        return Fitted((), (*loaded.diagnostics, *refused))
    planned = _planned(request, question, loaded.settings)
    # R305 warns that the micro-batch is only a default: `fit` is about other ones.
    found = (*loaded.diagnostics, *(item for item in planned.found if item.code != "R305"))
    if planned.plan is None:
        return Fitted((), found)
    plan = planned.plan.traced.fewest
    cards, problems = cards_of(question, plan)
    found = (*found, *problems)
    if any(item.severity is Severity.ERROR for item in problems):
        return Fitted((), found)
    span = loaded.settings["model.name"].span
    library = Library(plan, loaded.folder, span)
    share = plan.values.get_as(int, "training.global_batch_size") // plan.values.get_as(int, "parallel.world_size")
    allowed = searchers(library, share, asked_allocator(plan))
    wanted = [(card, precisions_of(question, plan, card)) for card in cards]
    try:
        least = None
        if cards:
            device = device_for(plan, cards[0])
            check_units(plan, next(iter(allowed.values())), variants(plan, device)[0], share)
            if planned.none_fits and not (question.cards or question.all_cards):
                least = leanest(of_each(allowed, leanest_steps(plan, device)), device)[0].strategy
        rows, first = table.table(plan, wanted, allowed, least)
        taken, drawing = first or (None, None)
        remedies = []
        if details and not taken and len(cards) == 1 and rows:
            remedies = _remedies(allowed, library, plan, cards[0], rows, planned.is_open)
        told = _details(question, plan, loaded.folder, taken, remedies, allowed, request) if details else []
    except NoTrace as stopped:
        codes = {item.code for item in stopped.found}
        return Fitted((), (*(item for item in found if item.code not in codes), *stopped.found))
    return Fitted(tuple(rows), found, plan, tuple(told), drawing, span)


@dataclass(frozen=True)
class _Planned:
    """The plan of a spec, or the findings that refuse it.

    ``is_open`` says that no prediction chose the strategy, which the spec leaves to ratc; ``none_fits`` that none fits
    on the spec's own card. The plan has a default strategy then.
    """

    plan: Plan | None
    found: tuple[Diagnostic, ...]
    is_open: bool
    none_fits: bool


def _planned(request: CompileRequest, question: Question, settings: Values) -> _Planned:
    # For a given micro-batch a prediction may choose the blocks to recompute. An open one is searched for here.
    is_given, is_auto = not open_batch.leaves_open(settings), settings["parallel.strategy"].value == "auto"
    settings = on_a_card(question, settings)
    plan, found, _, decision = inputs.decided(request, settings, predict=is_given or is_auto)
    if is_auto and plan is None and any(item.code in _NOTHING_FITS for item in found):
        plan, found, _ = inputs.resolve(request, settings, predict=is_given)
        return _Planned(plan, found, is_open=True, none_fits=True)
    none_fits = is_auto and decision is not None and not decision.choice.estimate.fits
    return _Planned(plan, found, is_auto and (decision is None or none_fits), none_fits)


def _details(
    question: Question,
    plan: Plan,
    folder: str,
    taken: Taken | None,
    remedies: Sequence[str],
    allowed: Mapping[str, Searcher],
    request: CompileRequest,
) -> list[str]:
    told = list(remedies)
    if taken:
        told = [
            *breakdown.lines(taken.choice),
            *_allocator_line(plan, taken),
            *_time_lines(plan, taken, allowed, request),
        ]
    card = plan.values["hardware.card"].value
    if plan.settings["parallel.strategy"].value == "auto" and taken and card:
        strategy = plan.values["parallel.strategy"]
        told.append(f"The strategy on {card} is {strategy.value}: {strategy.reason}.")
    return [*told, *_given_micro_batch(question, plan, request, folder, taken.choice if taken else None)]


def _remedies(
    allowed: Mapping[str, Searcher],
    library: Library,
    plan: Plan,
    card: facts.Card,
    rows: Sequence[Row],
    is_open: bool,
) -> list[str]:
    """Return the remedies if the plan's own strategy does not fit; each was predicted. ``is_open`` says that none of
    the strategies that `auto` compares does.
    """
    device, precision = device_for(plan, card), rows[0].precision
    steps = [
        (replace(step, precision=precision), replace(strategy, precision=precision))
        for step, strategy in leanest_steps(plan, device, is_settled=not is_open)
    ]
    found = why_nothing(allowed, library, plan, steps, device)
    said = breakdown.does_not_fit(found, any(row.micro_batch for row in rows))
    named = [f"  {line}" for line in of_auto(plan, found.estimate.strategy)] if is_open else []
    return [*said[:1], *named, *said[1:]]


def _given_micro_batch(
    question: Question, plan: Plan, request: CompileRequest, folder: str, told: Choice | None
) -> list[str]:
    """Return the breakdown and the times of the spec's own micro-batch on its own card, or a line that options for
    other cards exclude it. If the same choice was printed already, only the outcome and the times.
    """
    if open_batch.leaves_open(plan.settings):
        return []
    if question.cards or question.all_cards or question.precisions:
        micro = plan.values["training.micro_batch_size"].value
        return ["", f"The spec's own micro-batch, {micro}, is not checked here; without these options it is."]
    if not open_batch.is_given(plan):
        return []
    verdict, _ = given_batch.judge(plan, folder)
    if verdict is None:
        return []
    said = breakdown.of_given(verdict)
    said = said[-1:] if told and told.estimate == verdict.choice.estimate else ["", *said]
    step, why = step_time.predict_step(plan, folder, earlier=False)
    if step is None:
        return [*said, f"The time of a step is not predicted: {why}."]
    step = step_time.with_loading(plan, step, request.loader_rate)
    return [*said, "", *step_time.lines(plan, step, request.samples)]


def _time_lines(plan: Plan, taken: Taken, allowed: Mapping[str, Searcher], request: CompileRequest) -> list[str]:
    """The predicted time of the first card's step, and of the training if its number of samples is known."""
    found = taken.choice.estimate
    card = facts.find_card(found.device.name)
    if not isinstance(card, facts.Card):
        return []
    trace = allowed[taken.allocator].predictor(taken.variant, found.strategy, found.micro_batch).trace
    step, why = step_time.of_trace(plan, card, trace, found.strategy, found.micro_batch, taken.choice.accumulation)
    if step is None:
        return [f"The time of a step is not predicted: {why}."]
    step = step_time.with_loading(plan, step, request.loader_rate)
    if open_batch.leaves_open(plan.settings):
        return ["", *step_time.lines(plan, step, request.samples)]
    # The training is that of the spec's own micro-batch.
    return ["", f"With micro-batch {found.micro_batch}, {step.sentence()}"]


def _allocator_line(plan: Plan, taken: Taken) -> list[str]:
    """How the allocator takes memory on the first card, and why."""
    given = plan.values["training.allocator"]
    if given.value is None:  # the spec's own run is on the CPU
        return []
    asked = "the spec asks for it" if plan.values.given("training.allocator") else given.reason
    why = taken.reason if asked_allocator(plan) == "auto" else asked
    return [f"The allocator's setting is {taken.allocator}: {why}."]
