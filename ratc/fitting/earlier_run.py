"""The time of a plan's step in an earlier run: its `results.json` names the values that it ran with, and its speed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from ratc import files
from ratc.comparison.compare import same
from ratc.plan import Plan
from ratc.spec import keys
from ratc.timing import run
from ratc.timing.run import Prediction

NAME = "results.json"
#: The largest results.json that is read, in bytes. A run of many epochs has a line for each.
MOST_BYTES = 64 << 20
#: Sections of a plan with values that the time of a step may depend on.
SECTIONS = ("task_type", "debug", "model", "training", "engine", "data", "parallel", "hardware")
#: Values in these sections that the time of a step does not depend on, beside those that memory has nothing to do with.
_WITHOUT_EFFECT = ("training.max_steps_per_epoch", "data.data_dir", "data.class_names", "parallel.timeout_seconds")
#: The least number of steps of a run whose speed counts: the first steps are slower. Chosen, not measured.
LEAST_STEPS = 20


def measured(plan: Plan, folder: str) -> Prediction | None:
    """Return the step time of the last finished run in the plan's output folder. ``folder`` is the spec's.

    None if there is no such run, if its values differ from the plan's, if a start of it had another number of processes
    (an elastic plan), or if it was too short. The time is that of
    training on all processes, and so includes waits for data and communication.
    """
    place = os.path.join(folder, str(plan.values["output_dir"].value))
    results = _read(os.path.join(place, NAME))
    account, ran = results.get("account"), results.get("lock")
    if not (isinstance(account, Mapping) and isinstance(ran, Mapping) and _is_same(plan, ran)):
        return None
    world = plan.values.get_as(int, "parallel.world_size")
    starts = _at(results, "starts.last")
    if isinstance(starts, list) and any(_at(start, "world_size") not in (None, world) for start in starts):
        return None
    speed, steps = (_number(account.get(key)) for key in ("samples_per_second", "steps"))
    if speed <= 0 or steps < LEAST_STEPS:
        return None
    values = plan.values
    samples = values.get_as(int, "training.global_batch_size")
    source = f"the average of {int(steps):,} steps in {files.shown(place)}, with waits for data"
    return run.measured(samples / speed, samples, world, source, alone=False)


def _is_same(plan: Plan, ran: Mapping[str, Any]) -> bool:
    """Whether a run had the plan's value at every path that the time of a step may depend on."""
    told = [path for path in plan.values if path.partition(".")[0] in SECTIONS and path not in _WITHOUT_EFFECT]
    return all(same(_at(ran, path), plan.values[path].value) for path in told if keys.memory_of(path) != "apart")


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _number(value: Any) -> float:
    """Return a finite number unchanged; 0 for any other value."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else 0.0


def _read(path: str) -> Mapping[str, Any]:
    try:
        found = json.loads(files.read(path, MOST_BYTES) or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
