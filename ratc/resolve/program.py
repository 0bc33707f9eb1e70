"""The program that trains (`entrypoint`): its words, its launcher, and its values of the plan. Code: R401."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ratc import elastic, program
from ratc.diagnostics import Diagnostic
from ratc.resolve.context import Context

#: Without a launcher ratc starts the program once on each node, and the program starts its own processes.
_ONE_PER_NODE = "none"


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive the program's values. Placeholders are filled in here, so that the lock shows the final arguments."""
    settings = context.settings
    if settings["data.data_dir"].value is None:
        context.derive("data.data_dir", ".", "the spec has no `data_dir`: its own folder", "spec:data.data_dir")
    else:
        context.keep("data.data_dir")
    context.keep("training.epochs", "checkpoint.resume")
    context.derive("engine.deepspeed", False, "the program configures DeepSpeed itself", "spec:entrypoint.args")
    context.derive("engine.zero_stage", 0, "DeepSpeed is not used", "engine.deepspeed")
    yield from _launcher(context)
    handed = _handed(context)
    kind = program.kind(settings)
    assert kind is not None
    first, *rest = program.words(settings)
    inputs = (f"spec:entrypoint.{kind}",)
    context.derive("entrypoint.kind", kind, "from the `entrypoint`", *inputs)
    context.derive("entrypoint.program", first, "", *inputs)
    # With a range of nodes the lock's arguments are those of all: what differs is filled in at the start.
    left = (*program.AT_START, *program.OF_SIZE) if elastic.is_range(settings) else program.AT_START
    words = [program.filled(word, handed, left) if isinstance(word, str) else program.word(word) for word in rest]
    names = {name for _, text in program.texts(settings) for name in program.placeholders(text)}
    paths = [program.HANDED[name] for name in names if name in program.HANDED and name not in left]
    context.derive("entrypoint.args", words, "", "spec:entrypoint.args", *sorted(paths))


def _handed(context: Context) -> dict[str, Any]:
    """Return the plan's values for the program, by name."""
    told = {name: context.value(path) for name, path in program.HANDED.items()}
    return told | program.switches(told["precision"], context.value("training.tf32"))


def _launcher(context: Context) -> Iterator[Diagnostic]:
    settings = context.settings
    asked, command = settings["launcher"], program.kind(settings) == "command"
    if asked.value is None:
        why = "a command starts its own processes" if command else "the default for PyTorch programs"
        chosen = context.derive("entrypoint.launcher", _ONE_PER_NODE if command else "torchrun", why, "spec:launcher")
    else:
        context.keep("launcher", under="entrypoint.launcher")
        chosen = asked.value
    scheduler = context.facts["cluster.scheduler"].value if "cluster.scheduler" in context.facts else None
    if chosen == "srun" and scheduler != "slurm":
        where = f"on {context.facts['cluster.name'].reason}" if scheduler else "on this target"
        message = f"`launcher: srun` needs Slurm, and there is none {where}"
        yield Diagnostic("R401", message, asked.span, helps=("use `torchrun`, `accelerate` or `none`",))
    if scheduler:
        context.derive("job.launcher", chosen, "the same as for the program", "entrypoint.launcher")
    context.derive("engine.use_accelerate", chosen == "accelerate", f"the launcher is {chosen}", "entrypoint.launcher")
