"""R201: keys that exclude one another, or that say the same thing differently."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import Values

_ENVIRONMENTS = ("environment.venv", "environment.conda", "environment.container")


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check for one environment at most, GPU counts that agree, and a launcher that fits the engine."""
    given = [path for path in _ENVIRONMENTS if settings[path].value is not None]
    for path in given[1:]:
        message = f"`{path.rpartition('.')[2]}` excludes `{given[0].rpartition('.')[2]}`"
        yield Diagnostic("R201", message, settings[path].span, helps=("keep one of them",))
    launcher, accelerate = settings["launcher"], settings["training.use_accelerate"]
    if launcher.value == "accelerate" and not accelerate.value:
        message = "`launcher: accelerate` excludes `use_accelerate: false`"
        yield Diagnostic("R201", message, launcher.span, helps=("use `launcher: torchrun`",))
    strategy, deepspeed = settings["parallel.strategy"], settings["training.deepspeed"]
    if strategy.value is not None and deepspeed.value not in (None, strategy.value == "deepspeed"):
        word = str(deepspeed.value).lower()
        message = f"`strategy: {strategy.value}` and `deepspeed: {word}` contradict each other"
        yield Diagnostic("R201", message, strategy.span, helps=("keep `parallel.strategy`",))
    total, per_node = settings["resources.num_gpus"], settings["resources.gpus_per_node"]
    nodes = settings.get_as(int, "resources.nodes")
    if total.value is not None and per_node.value is not None and total.value != per_node.value * nodes:
        note = f"{nodes} node{'s' if nodes > 1 else ''} x {per_node.value} = {nodes * per_node.value}"
        message = f"`num_gpus: {total.value}` and `gpus_per_node: {per_node.value}` contradict each other"
        yield Diagnostic("R201", message, total.span or per_node.span, (note,), ("keep one of them",))
