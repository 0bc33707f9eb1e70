"""The cards and precisions of a table of micro-batches that fit."""

from __future__ import annotations

from dataclasses import dataclass

from ratc import facts
from ratc.diagnostics import Diagnostic, Severity
from ratc.fitting import table
from ratc.plan import Plan, Value, Values


@dataclass(frozen=True, slots=True)
class Question:
    """The cards and precisions of the table, by name; those of the spec if there are none."""

    cards: tuple[str, ...] = ()
    all_cards: bool = False
    precisions: tuple[str, ...] = ()


#: In the order in which they are tried.
PRECISIONS = ("bf16", "fp16", "fp32")
#: Helps for a card without a prediction.
_OTHERS = ("name other cards: `--card CARD`", "or measure a step on it: `ratc profile SPEC --measure`")


def on_a_card(question: Question, settings: Values) -> Values:
    """Return the settings with the first card of the question, if the spec requests GPUs and names no card. Otherwise
    the answer would depend on this machine's GPUs.
    """
    named = question.cards[:1] or (table.COMMON[:1] if question.all_cards else [])
    counts = [settings[f"resources.{key}"].value for key in ("num_gpus", "gpus_per_node")]
    if not named or settings["resources.gpu"].value is not None or not any(counts):
        return settings
    return Values({**settings, "resources.gpu": Value(named[0], "layer", span=None)})


def cards_of(question: Question, plan: Plan) -> tuple[list[facts.Card], tuple[Diagnostic, ...]]:
    """The cards to show: those that were named, else the plan's own, else common ones. Codes: R301, R348."""
    own = table.own_card(plan)
    chosen: list[facts.Card] = [own] if own and not question.cards and not question.all_cards else []
    found: list[Diagnostic] = []
    for name in question.cards:
        card, problems = facts.resolve_card(name, None)
        found += problems
        chosen += [card] if card else []
    reasons = {card: why for card in chosen if (why := table.unpredictable(plan, card))}
    severity = Severity.ERROR if len(reasons) == len(chosen) else Severity.WARNING
    for card, why in reasons.items():
        message = f"nothing is predicted for {card.name}: {why}"
        found.append(Diagnostic("R348", message, helps=_OTHERS, severity=severity))
    chosen = [card for card in chosen if card not in reasons]
    names = facts.card_names() if question.all_cards else () if chosen or question.cards else table.COMMON
    others = [card for card in map(facts.find_card, names) if isinstance(card, facts.Card)]
    shown = [*chosen, *(card for card in others if not table.unpredictable(plan, card))]
    return list(dict.fromkeys(shown)), tuple(found)


def precisions_of(question: Question, plan: Plan, card: facts.Card) -> list[str]:
    """Return the precisions to show for a card: the named ones, else the spec's, without those that the card lacks. For
    `auto` they are the card's best and fp32.
    """
    can = {"bf16": card.bf16, "fp16": card.fp16, "fp32": True}
    if question.precisions:
        return [kind for kind in question.precisions if can[kind]]
    asked = plan.settings["training.precision"].value
    if asked != "auto":
        return [asked] if can[asked] else []
    if not plan.settings["training.mixed_precision"].value:
        return ["fp32"]
    return [next(kind for kind in PRECISIONS if can[kind]), "fp32"][: 2 if card.fp16 or card.bf16 else 1]
