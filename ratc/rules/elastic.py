"""R371 and R372: an invalid range of nodes, and keys that do not go with one."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.elastic import FEWEST, NODES, is_range
from ratc.plan import Values

#: More node counts than this are a mistake: each has a row in the lock that people review.
MOST_COUNTS = 1024


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check for a range from few to more nodes, with one global batch and one run."""
    if not is_range(settings):
        return
    nodes, (fewest, most) = settings[NODES], (settings.get_as(int, path) for path in (FEWEST, NODES))
    if fewest > most:
        helps = (f"write `{{min: {most}, max: {fewest}}}`",)
        yield Diagnostic("R371", f"`min: {fewest}` is more than `max: {most}`", nodes.span, helps=helps)
        return
    if most - fewest >= MOST_COUNTS:
        message = f"a range of {most - fewest + 1:,} node counts; {MOST_COUNTS:,} are the most"
        yield Diagnostic("R371", message, nodes.span)
        return
    total, target = settings["resources.num_gpus"], settings["training.target_batch_size"]
    if total.value:
        message = "`num_gpus` is one number, and the nodes are a range"
        yield Diagnostic("R372", message, total.span, helps=("use `gpus_per_node`",))
    if target.value is None:
        message = "a range of nodes needs `target_batch_size`: it is the same for all of them"
        span = settings["training.batch_size"].span or nodes.span
        yield Diagnostic("R372", message, span, helps=("add `target_batch_size` under `training`",))
    for section, what in (("sweep", "an array"), ("tuning", "a study")):
        given = next((path for path in settings if path.startswith(section) and settings.given(path)), None)
        if given is not None:
            message = f"{what} does not go with a range of nodes: its runs share one request"
            yield Diagnostic("R372", message, nodes.span, helps=("give `nodes` as one number",))
    stage = settings["training.zero_stage"]
    deepspeed = settings["training.deepspeed"].value or settings["parallel.strategy"].value == "deepspeed"
    if deepspeed and stage.value == 0:
        message = "ZeRO stage 0 does not go with a range of nodes"
        note = "its checkpoints are not tried with another number of processes than wrote them"
        yield Diagnostic("R372", message, stage.span, (note,), ("use `zero_stage: 1`, `2` or `3`",))
