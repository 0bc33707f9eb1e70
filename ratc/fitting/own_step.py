"""The memory and the time of a plan's own step as text for people, or why they are not predicted."""

from __future__ import annotations

from ratc.fitting import breakdown, given_batch, open_batch, step_time
from ratc.memory.decision import Decision
from ratc.plan import Plan
from ratc.program import OF_A_PROGRAM, is_program


def unpredicted(plan: Plan) -> str:
    """Return a sentence with the reason why no memory is predicted for the plan's hardware; empty if it is."""
    values = plan.values
    if is_program(plan.settings):
        return OF_A_PROGRAM
    if values["hardware.device"].value != "cuda":
        return "No memory is predicted: it trains on the CPU."
    if not values["hardware.compute_capability"].value or not values["hardware.memory_bytes"].value:
        return "No memory is predicted: it is not known which NVIDIA card it will run on."
    return ""


def lines(plan: Plan, decision: Decision | None, folder: str) -> list[str]:
    """Return lines of text: the memory of the micro-batch part by part, and the time of the step. If the memory is not
    predicted, the reason takes its place.

    ``decision`` is that of the plan's prediction; None if the plan needs none, or if the prediction failed. ``folder``
    is the spec's. Raises NoTrace as `ratc.fitting.given_batch.judge` does.
    """
    if decision is not None and not decision.is_given:
        return [*breakdown.lines(decision.choice, decision.measured), *_time_lines(plan, folder)]
    if why := unpredicted(plan):
        known = plan.values["hardware.device"].value != "cuda" or is_program(plan.settings)
        more = "" if known else " `ratc fit SPEC --card CARD` predicts for a card."
        return [why + more, *_time_lines(plan, folder)]
    if open_batch.is_given(plan):
        verdict, why = given_batch.judge(plan, folder)
        if verdict is None:
            return [f"No memory is predicted: {why}."]
        return [*breakdown.of_given(verdict), *_time_lines(plan, folder)]
    return ["No memory is predicted: the model's step could not be traced here (see the warning)."]


def _time_lines(plan: Plan, folder: str) -> list[str]:
    """Return the time of the plan's step, and of each class of its kernels; empty if it is not predicted."""
    step, _ = step_time.predict_step(plan, folder)
    return [] if step is None else ["", *step_time.lines(plan, step, None), *step_time.parts(step)]


def time_sentence(plan: Plan, folder: str) -> str:
    """Return a sentence with the time of the plan's step, or with the reason why it is not predicted."""
    step, why = step_time.predict_step(plan, folder)
    text = step.sentence() if step else f"the time of a step is not predicted: {why}"
    return f"{text[0].upper()}{text[1:]}."
