"""The memory parts of a report: the breakdown of the plan's own step, its timeline, and the table of cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ratc import facts
from ratc.catalog.alloc_conf import EXPANDABLE
from ratc.diagnostics import Diagnostic
from ratc.fitting import breakdown, own_step, table
from ratc.fitting.plan_step import asked_allocator, device_of, own_searcher, strategy_of
from ratc.fitting.traces import Library, NoTrace
from ratc.memory.allocators import searchers
from ratc.memory.choose import Choice, Searcher
from ratc.memory.decision import Decision
from ratc.memory.request import variant
from ratc.plan import Plan
from ratc.program import OF_A_PROGRAM, is_program
from ratc.render.fit import Row, gib
from ratc.render.html.memory import CardMemory, CardRow, Part
from ratc.render.timeline import Drawing


@dataclass(frozen=True, slots=True)
class FitReport:
    """The parts of a report, each with a sentence that gives the reason if it is missing.

    ``unpredicted`` is the reason for ``card_memory``, ``undrawn`` for ``drawing``, ``no_cards`` for ``cards``.
    ``cards_note`` gives the conditions of the table. ``found`` are the diagnostics that stopped a prediction.
    """

    card_memory: CardMemory | None = None
    unpredicted: str = ""
    drawing: Drawing | None = None
    undrawn: str = ""
    cards: Sequence[CardRow] = ()
    cards_note: str = ""
    no_cards: str = ""
    found: tuple[Diagnostic, ...] = ()


def fit_report(plan: Plan, decision: Decision | None, folder: str, cards: Sequence[str] | None) -> FitReport:
    """Predict the parts of the plan's step; ``folder`` is the spec's. Codes: R301; R315 and R316 if the model cannot
    be traced.
    """
    if is_program(plan.settings):
        return FitReport(unpredicted=OF_A_PROGRAM, no_cards="ratc cannot predict which cards the program fits on.")
    library = Library(plan, folder, plan.settings["model.name"].span)
    searcher = own_searcher(plan, library)
    why = own_step.unpredicted(plan)
    choice, drawing, undrawn = (None, None, "") if why else _step(plan, decision, searcher)
    if not why and choice is None:
        why, undrawn = undrawn, ""
    fewest = plan.fewest
    share = own_searcher(fewest, library).share
    rows, no_cards, found = _cards(cards, fewest, searchers(library, share, asked_allocator(fewest)))
    return FitReport(
        _card_memory(choice, plan, decision.measured if decision else None, own_step.time_sentence(plan, folder))
        if choice
        else None,
        why,
        drawing,
        undrawn,
        rows,
        table.note(fewest) if rows else "",
        no_cards,
        found,
    )


def _step(plan: Plan, decision: Decision | None, searcher: Searcher) -> tuple[Choice | None, Drawing | None, str]:
    """Return the choice of the plan's own step and its drawing; or the reason if one is missing."""
    device, strategy = device_of(plan), strategy_of(plan)
    wanted = variant(plan, device.kernels)
    choice = decision.choice if decision else None
    try:
        if choice is None:
            micro = plan.values.get_as(int, "training.micro_batch_size")
            found = searcher.estimate(wanted, strategy, device, micro)
            broken = searcher.predictor(wanted, strategy, micro).breakdown(found)
            steps = plan.values.get_as(int, "training.gradient_accumulation_steps")
            choice = Choice(found, steps, broken)
        model = plan.values.get_as(str, "model.name")
        return choice, table.drawing(model, searcher, wanted, strategy, choice), ""
    except NoTrace as stopped:
        reason = "; ".join(item.message for item in stopped.found)
        if choice is None:
            return None, None, f"No memory is predicted: {reason}."
        return choice, None, f"The step is not drawn: {reason}."


def _card_memory(choice: Choice, plan: Plan, measured: str | None, time: str) -> CardMemory:
    found = choice.estimate
    used = breakdown.parts(found, choice.breakdown, measured)
    left = []
    if found.fits:
        margin = breakdown.margin_text(found)
        left.append(Part("margin", found.budget_bytes - found.cap_bytes, "kept free as a margin", margin))
        left.append(Part("unused", found.cap_bytes - found.peak_reserved_bytes, "unused below the cap"))
    sentences = (
        [breakdown.taken(choice)] if found.fits else ["This does not fit: `ratc fit SPEC` shows what would fit."]
    )
    if plan.sizes:
        sentences.append(
            f"That is on {plan.node_counts[-1]} nodes, the most of the range; the others are under “Numbers of nodes”."
        )
    if choice.next_larger is not None:
        sentences.append(breakdown.more(choice.next_larger))
    if found.host_bytes:
        sentences.append(f"Beside it, {breakdown.size_text(found.host_bytes)} of host memory for what is offloaded.")
    return CardMemory(
        found.device.name,
        found.device.memory_bytes,
        found.predicted_bytes,
        found.micro_batch,
        measured or "predicted",
        used,
        left,
        found.fits,
        sentences,
        time=time,
    )


def _cards(
    cards: Sequence[str] | None, plan: Plan, allowed: Mapping[str, Searcher]
) -> tuple[list[CardRow], str, tuple[Diagnostic, ...]]:
    """Return the table of cards: the plan's own, and the named ones or a few common ones. Code: R301."""
    if cards is None:
        return [], "No other cards were asked for (`--no-cards`).", ()
    own = table.own_card(plan)
    if not cards and own_step.unpredicted(plan):
        return [], "The plan names no NVIDIA card. `--card CARD` shows what would fit on one.", ()
    shown: list[facts.Card] = [own] if own else []
    for name in cards or table.COMMON:
        card, problems = facts.resolve_card(name, None)
        if problems:
            return [], "One of the cards is not known.", problems
        shown += [card] if card else []
    shown = [card for card in dict.fromkeys(shown) if not table.unpredictable(plan, card)]
    try:
        rows, _ = table.table(plan, [(card, _precisions(plan, card)) for card in shown], allowed)
    except NoTrace as stopped:
        reason = "; ".join(item.message for item in stopped.found)
        return [], f"Nothing is predicted for cards: {reason}.", ()
    return [_row(plan, row) for row in rows], "", ()


def _precisions(plan: Plan, card: facts.Card) -> list[str]:
    """Return the plan's precision if the card has it; else the card's best, if the spec leaves the precision open."""
    can = {"bf16": card.bf16, "fp16": card.fp16, "fp32": True}
    own = plan.values.get_as(str, "training.precision")
    if can[own]:
        return [own]
    asked = plan.settings["training.precision"].value
    return [next(kind for kind in can if can[kind])] if asked == "auto" else []


def _row(plan: Plan, row: Row) -> CardRow:
    values = plan.values
    remarks = [f"{row.attention_memory} attention"] if row.attention_memory != "full" else []
    remarks += ["expandable segments"] if row.allocator == EXPANDABLE else []
    remarks += ["checkpointing"] if row.activation_checkpointing else []
    is_own = (row.card, row.precision, row.zero_stage or 0, row.micro_batch) == (
        values["hardware.card"].value,
        values["training.precision"].value,
        values["engine.zero_stage"].value or 0,
        values["training.micro_batch_size"].value,
    )
    fits = row.micro_batch is not None
    return CardRow(
        row.card,
        gib(row.memory_bytes),
        row.precision,
        "-" if row.zero_stage is None else str(row.zero_stage),
        str(row.micro_batch) if fits else "none",
        str(row.accumulation) if fits else "-",
        gib(row.device_bytes) if fits else f"needs {gib(row.need_bytes)}",
        ", ".join(remarks),
        (row.device_bytes if fits else row.need_bytes) or 0,
        row.memory_bytes,
        fits,
        is_own,
    )
