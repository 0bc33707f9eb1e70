"""Hugging Face Accelerate under a plan of ratc's.

    plan = ratc_runtime.plan()
    accelerator = make_accelerator(plan)

The loop is the program's own: it asks `plan.should_stop()` at each step boundary, saves with
`accelerator.save_state(…)`, and says `plan.stopped()` or `plan.finished(…)`.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from ratc_runtime.program.plan import ProgramPlan


def make_accelerator(plan: ProgramPlan, **more: Any) -> Accelerator:
    """Return the Accelerator of a plan, with the plan's seed set; `more` are further arguments of it.

    Raises R503 if what it does is not what the lock says, and TypeError for an argument that the plan decides.
    """
    precision = plan["precision"]
    decided = {
        "gradient_accumulation_steps": plan["gradient_accumulation_steps"],
        "mixed_precision": "no" if precision == "fp32" else precision,
        "cpu": plan.lock.hardware.device == "cpu",
    }
    if clash := sorted(more.keys() & decided.keys()):
        raise TypeError(f"the plan decides {', '.join(clash)}: set them in the spec")
    accelerator = Accelerator(**decided, **more)
    set_seed(plan["seed"])
    found = accelerator.mixed_precision
    plan.verify(
        gradient_accumulation_steps=accelerator.gradient_accumulation_steps,
        world_size=accelerator.num_processes,
        precision="fp32" if found == "no" else found,
    )
    return accelerator
