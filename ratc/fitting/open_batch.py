"""Tells whether a plan leaves its micro-batch open, and gives the key of a prediction for it."""

from __future__ import annotations

from ratc import elastic
from ratc.plan import Plan, Values
from ratc.program import is_program
from ratc.spec import keys


def predicted_from(plan: Plan, folder: str) -> tuple[object, ...]:
    """Return the key of a prediction: all values, settings and facts that it may depend on. Plans with the same key
    share it.

    The settings matter beside the values: they say what is left to the prediction.
    """
    read = [("value", path, value) for path, value in plan.values.items() if keys.memory_of(path) != "apart"]
    read += [("spec", path, value) for path, value in plan.settings.items() if keys.memory_of_setting(path) != "apart"]
    read += [("fact", path, value) for path, value in plan.facts.items()]
    return folder, *((kind, path, repr(value.value)) for kind, path, value in read)


def is_open(plan: Plan) -> bool:
    """Whether the micro-batch is left to ratc, on a card whose kernels are known."""
    return _is_known_card(plan) and leaves_open(plan.settings)


def is_predicted(plan: Plan) -> bool:
    """Whether values of the plan rest on a prediction: the micro-batch is open, or the spec leaves to ratc which blocks
    are recomputed for it, or which strategy shares it; or the plan is for a range of nodes, of which each has its
    memory in the lock.
    """
    if is_open(plan):
        return True
    left = ["training.activation_checkpointing"]
    left += ["parallel.strategy"] if plan.values.get_as(int, "parallel.world_size") > 1 else []
    return is_given(plan) and (
        elastic.is_range(plan.settings) or any(plan.settings[path].value == "auto" for path in left)
    )


def is_given(plan: Plan) -> bool:
    """Whether the spec gives the micro-batch, on a card whose kernels and memory are known: it can be checked."""
    return _is_known_card(plan) and not leaves_open(plan.settings) and bool(plan.values["hardware.memory_bytes"].value)


def leaves_open(settings: Values) -> bool:
    """Whether a spec's settings leave the micro-batch to ratc."""
    given = ("training.batch_size", "training.gradient_accumulation_steps")
    return all(settings[path].value is None for path in given)


def _is_known_card(plan: Plan) -> bool:
    """Whether the kernels of the plan's card are known. False for a program of the user's: its memory is unknown."""
    values = plan.values
    if is_program(plan.settings):
        return False
    return values["hardware.device"].value == "cuda" and bool(values["hardware.compute_capability"].value)
