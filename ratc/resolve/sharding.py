"""The strategy, and the shards of FSDP2. Codes: R307, R363, R364."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog import optimizers
from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Value
from ratc.resolve.context import Context


def derive(context: Context) -> Iterator[Diagnostic]:
    """Settle the strategy if the spec has one, and with FSDP2 its mesh, its units and their precision."""
    asked = context.settings["parallel.strategy"]
    if asked.value is None:
        return
    world, decision = int(context.value("parallel.world_size")), context.compared
    if asked.value != "auto":
        context.keep("parallel.strategy")
    elif decision is not None:
        why = decision.where + decision.strategy_reason
        context.derive("parallel.strategy", decision.strategy, why, *context.compared_by())
    else:
        used = "deepspeed" if context.value("engine.deepspeed") else "ddp"
        why = f"{_not_compared(context, world)}: the same as without the key"
        context.derive("parallel.strategy", used, why, "spec:parallel.strategy", "engine.deepspeed")
    if asked.value == "auto":
        yield from _without_effect(context, world)
    if context.value("parallel.strategy") != "fsdp2":
        return
    if world == 1:
        message = "`fsdp2` is not used with one process: sharding needs several"
        yield Diagnostic("R307", message, asked.span, severity=Severity.WARNING)
        context.derive("parallel.strategy", "ddp", "one process: sharding needs several", "parallel.world_size")
        return
    found = list(_refused(context))
    yield from found
    if not found:
        yield from _mesh(context, world)
    if "fsdp2.shard_size" not in context.values:
        return
    _units(context)
    context.keep("parallel.offload", under="fsdp2.offload")
    context.keep("parallel.mixed_precision", under="fsdp2.weights")


def _not_compared(context: Context, world: int) -> str:
    """Return the reason why `auto` compares no strategies."""
    if world == 1:
        return "one process has nothing to share"
    if context.decision is None:
        return "none is predicted to fit, or nothing is predicted"
    return "the memory is measured" if context.decision.measured else "the micro-batch fits with none"


def _without_effect(context: Context, world: int) -> Iterator[Diagnostic]:
    """Yield findings on keys of a strategy that `auto` does not take: an impossible mesh of FSDP2, settings that are
    lost.
    """
    used, size = context.value("parallel.strategy"), context.settings["parallel.shard_size"]
    if used != "fsdp2" and world > 1 and size.value is not None and group(context) is None:
        yield _no_mesh(context, world, int(size.value))
    for strategy, path in (("fsdp2", "parallel.offload"), ("deepspeed", "training.zero_stage")):
        given = context.settings[path]
        if given.value and used != strategy:
            message = f"`{path.rpartition('.')[2]}` has no effect: the strategy is {used}"
            yield Diagnostic("R307", message, given.span, severity=Severity.WARNING)


def conflicts(context: Context) -> Iterator[tuple[str, str, str]]:
    """Yield each setting that cannot be combined with FSDP2: its key, the reason, and the help."""
    settings, precision = context.settings, context.value("training.precision")
    optimizer = settings.get_as(str, "training.optimizer")
    if why := optimizers.of(optimizer).unsharded:
        yield "training.optimizer", f"`optimizer: {optimizer}` {why}", f"use {optimizers.names(sharded=True)}"
    if precision == "fp16":
        yield "training.precision", "ratc cannot scale the loss of fp16 over shards", "use `bf16` or `fp32`"
    if settings["parallel.mixed_precision"].value == "bf16" and precision != "bf16":
        why = f"weights cannot be gathered in bf16 if `precision` is {precision}"
        yield "parallel.mixed_precision", why, "set `precision: bf16`, or remove `parallel.mixed_precision`"
    if settings["training.compile"].value:
        yield "training.compile", "compiled graphs would keep the gathered weights", "remove `compile`"
    if settings["parallel.offload"].value and context.value("hardware.device") == "cpu":
        yield "parallel.offload", "there is no GPU to offload from", "remove `offload`"
    begin, aware = settings.get("compression.begin_epoch"), settings.get("compression.aware")
    if (begin is not None and begin.value is not None) or (aware is not None and aware.value):
        path = "compression.begin_epoch" if begin is not None and begin.value is not None else "compression.aware"
        yield path, "weights are pruned or rounded in training", "prune and quantize after training"


def _refused(context: Context) -> Iterator[Diagnostic]:
    for path, why, instead in conflicts(context):
        given = context.settings[path]
        span = given.span or context.settings["parallel.strategy"].span
        message = f"`strategy: fsdp2` does not work with this spec: {why}"
        yield Diagnostic("R363", message, span, helps=(instead, "or use `strategy: ddp`"))


def group(context: Context) -> int | None:
    """Return the number of processes that share one copy of the states; with `hybrid`, None unless it is a true divisor
    of the number of all processes.
    """
    settings, world = context.settings, int(context.value("parallel.world_size"))
    if settings["parallel.shard"].value != "hybrid":
        return world
    size = int(settings["parallel.shard_size"].value or context.value("parallel.processes_per_node"))
    return size if 1 < size < world and world % size == 0 else None


def _mesh(context: Context, world: int) -> Iterator[Diagnostic]:
    """Derive the processes of a group of shards: a true divisor of all with `hybrid`, else all."""
    shard, asked = context.settings["parallel.shard"], context.settings["parallel.shard_size"]
    context.keep("parallel.shard", under="fsdp2.shard")
    if shard.value != "hybrid":
        context.derive("fsdp2.shard_size", world, "all processes", "parallel.world_size", "fsdp2.shard")
        return
    size = int(asked.value or context.value("parallel.processes_per_node"))
    if group(context) == size:
        if asked.value is not None:
            context.keep("parallel.shard_size", under="fsdp2.shard_size")
        else:
            context.derive(
                "fsdp2.shard_size", size, "the processes of a node", "parallel.processes_per_node", "fsdp2.shard"
            )
        return
    yield _no_mesh(context, world, size)


def _no_mesh(context: Context, world: int, size: int) -> Diagnostic:
    """Return the finding that groups of ``size`` processes cannot be formed. Code: R364."""
    shard, asked = context.settings["parallel.shard"], context.settings["parallel.shard_size"]
    possible = [number for number in range(2, world) if world % number == 0]
    whose = "`shard_size`" if asked.value is not None else "a node"
    copies = f"groups of {size} processes ({whose}) cannot be formed of {world} processes"
    why = (
        f"{world} is not divisible by {size}"
        if world % size
        else "hybrid sharding needs several groups, each of several processes"
    )
    sizes = ", ".join(map(str, possible))
    helps = (
        (f"use `shard_size: {sizes}`" if len(possible) == 1 else f"`shard_size` may be {sizes}",) if possible else ()
    )
    return Diagnostic("R364", copies, asked.span or shard.span, (why,), (*helps, "or use `shard: full`"))


def _units(context: Context) -> None:
    asked, decision = context.settings["parallel.wrap"], context.decision
    if asked.value != "auto":
        given = Value(list(asked.value), asked.origin, asked.reason, ("spec:parallel.wrap",), asked.span)
        context.values["fsdp2.wrap"] = given
    elif decision is not None and decision.units:
        names = [unit.name for unit in decision.units]
        why = "; ".join(unit.text for unit in decision.units)
        context.derive("fsdp2.wrap", names, why, "spec:parallel.wrap", "spec:training.batch_size")
    else:
        context.derive("fsdp2.wrap", None, "the repeated layers, found at the start", "spec:parallel.wrap")
