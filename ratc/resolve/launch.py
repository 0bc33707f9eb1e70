"""A job's request to the scheduler, and how it is started, stopped and requeued. Codes: R353, R384, R401,
R406.

Only if the facts are a cluster's; `local` has no request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ratc import elastic
from ratc.catalog import alloc_conf, cublas, launch_variables
from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Value
from ratc.resolve.context import Context
from ratc.units import duration, walltime_seconds

#: Ports of the rendezvous, tried in this order: none is privileged, and the first holds for Linux's default ephemeral
#: range, 32768 to 60999 (ip(7), ip_local_port_range).
PORTS = ((10_000, 28_999), (61_000, 65_000), (1_024, 9_999), (29_000, 60_999))
#: The first version of Slurm with `sbatch --requeue=expedite` (Slurm's release notes, 25.11).
EXPEDITED_SINCE = (25, 11)
#: The least number of ports: with fewer, jobs on one node would often choose the same. Chosen, not measured.
FEWEST_PORTS = 500


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive names, time limit, signals, requeue and the launcher."""
    if "cluster.scheduler" not in context.facts:
        return
    settings = context.settings
    _name(context)
    for key in ("account", "qos"):
        context.keep(f"resources.{key}", under=f"job.{key}")
    yield from _walltime(context)
    _requeue(context)
    yield from _expedite(context)
    _segments(context)
    _launcher(context)
    start = context.facts["cluster.launcher"]
    context.values["job.start"] = Value(
        start.value, start.origin, start.reason, ("facts:cluster.launcher",), start.span
    )
    yield from _ports(context)
    yield from _variables(context)
    container = settings["environment.container"]
    if container.value is not None and context.facts["cluster.container"].value is None:
        where = context.facts["cluster.name"].value
        if where is not None:
            note = f"the facts of {where} name no container runtime"
            helps = ("use `venv`, `conda` or `modules`, or add `container: apptainer` to the cluster's facts",)
            yield Diagnostic(
                "R401",
                "`environment.container` needs a container runtime, and the cluster has none",
                container.span,
                (note,),
                helps,
            )


def _name(context: Context) -> None:
    if context.settings["resources.job_name"].value is not None:
        context.keep("resources.job_name", under="job.name")
    else:
        name = context.value("experiment_name")
        context.derive("job.name", name, "the experiment's name", "experiment_name")
    for key in ("partition", "node_type", "gpu_type", "constraint"):
        fact = context.facts[f"cluster.{key}"]
        context.values[f"job.{key}"] = Value(fact.value, fact.origin, fact.reason, (f"facts:cluster.{key}",), fact.span)


def _walltime(context: Context) -> Iterator[Diagnostic]:
    settings = context.settings
    asked, default = settings["resources.walltime"], context.facts["cluster.walltime_seconds"]
    if asked.value is not None:
        seconds = walltime_seconds(asked.value)
        context.values["job.walltime_seconds"] = Value(
            seconds, asked.origin, asked.reason, ("spec:resources.walltime",), asked.span
        )
    else:
        context.values["job.walltime_seconds"] = Value(
            default.value, default.origin, default.reason, ("facts:cluster.walltime_seconds",), default.span
        )
    context.keep("checkpoint.stop_before_seconds", under="job.stop_before_seconds")
    walltime, lead = context.value("job.walltime_seconds"), settings["checkpoint.stop_before_seconds"]
    if walltime == 0:
        # Slurm would take it for no limit at all.
        span = settings["resources.walltime"].span
        yield Diagnostic("R406", "`walltime` is 0: the job would have no time at all", span)
        return
    # Slurm may deliver the signal up to a minute early (sbatch(1), --signal).
    if walltime is not None and walltime <= lead.value + 60:
        message = (
            f"a walltime of {duration(walltime)} leaves no time to train: the job is told to save "
            f"{duration(lead.value)} before its end, or up to a minute earlier"
        )
        helps = (f"ask for more than {duration(lead.value + 60)}, or lower `checkpoint.stop_before_seconds`",)
        span = settings["resources.walltime"].span or lead.span
        yield Diagnostic("R406", message, span, helps=helps, severity=Severity.WARNING)


def _requeue(context: Context) -> None:
    asked, allowed = context.settings["checkpoint.requeue"], context.facts["cluster.requeue"]
    inputs = ("spec:checkpoint.requeue", "facts:cluster.requeue")
    if asked.value == "never":
        context.derive("job.requeue", False, "the spec says `requeue: never`", *inputs)
    elif not allowed.value:
        context.derive("job.requeue", False, f"{allowed.reason} does not allow it", *inputs)
    else:
        context.derive(
            "job.requeue",
            True,
            "a job that is preempted or out of time saves a checkpoint and continues later",
            *inputs,
        )
    context.keep("checkpoint.max_restarts", under="job.max_restarts")


def _expedite(context: Context) -> Iterator[Diagnostic]:
    """Take Slurm's expedited requeue, if the cluster has it and the job may be requeued."""
    fact, version = context.facts["cluster.expedited_requeue"], context.facts["cluster.version"]
    if not fact.value or context.facts["cluster.scheduler"].value != "slurm":
        return
    known = re.match(r"(\d+)\.(\d+)", str(version.value or ""))
    if known and (int(known[1]), int(known[2])) < EXPEDITED_SINCE:
        since = ".".join(map(str, EXPEDITED_SINCE))
        message = f"`expedited_requeue` needs Slurm {since}, and `version` is {version.value}"
        helps = ("remove it from the cluster's facts, or correct `version`",)
        yield Diagnostic("R384", message, fact.span, helps=helps)
    elif context.value("job.requeue"):
        context.derive("job.expedited_requeue", True, fact.reason, "facts:cluster.expedited_requeue", "job.requeue")


def _segments(context: Context) -> None:
    """Take the most nodes that lie in one block and divide those of the job, if the cluster has blocks.

    sbatch(1): the size of a segment must divide the number of nodes. With a range of nodes it may not.
    """
    block, nodes = context.facts["cluster.block_nodes"], context.value("parallel.nodes")
    if not block.value or nodes == 1 or elastic.is_range(context.settings):
        return
    if context.facts["cluster.scheduler"].value != "slurm":
        return
    size = max(count for count in range(1, min(block.value, nodes) + 1) if nodes % count == 0)
    if size > 1:
        reason = f"all nodes of a segment lie in one block of {block.value}"
        context.derive("job.segment_nodes", size, reason, "facts:cluster.block_nodes", "parallel.nodes")


def _launcher(context: Context) -> None:
    if "job.launcher" in context.values:
        return
    asked, accelerate = context.settings["launcher"], context.value("engine.use_accelerate")
    if asked.value is not None:
        context.keep("launcher", under="job.launcher")
    else:
        why = "use_accelerate is true" if accelerate else "use_accelerate is false"
        context.derive("job.launcher", "accelerate" if accelerate else "torchrun", why, "engine.use_accelerate")


def _variables(context: Context) -> Iterator[Diagnostic]:
    """Check the cluster's variables for every job: they must not override the lock, and torch must accept them."""
    fact = context.facts["cluster.variables"]
    for name in fact.value:
        why = launch_variables.reason(name)
        if why is not None:
            message = f"the cluster's variable `{name}` {why}"
            yield Diagnostic("R353", message, fact.span, helps=("remove it from the cluster's facts",))
        value = str(fact.value[name])
        wrong = alloc_conf.fault(value) if name in alloc_conf.READ else launch_variables.fault(name, value)
        if name == cublas.NAME and (odd := cublas.fault(value)):
            message = f"the cluster's variable `{name}` {odd}"
            yield Diagnostic("R353", message, fact.span, severity=Severity.WARNING)
        if wrong:
            message = f"the cluster's variable `{name}` {wrong}: runs would end as soon as torch reads it"
            yield Diagnostic("R353", message, fact.span, helps=("correct it in the cluster's facts",))


def _ports(context: Context) -> Iterator[Diagnostic]:
    fact = context.facts["cluster.ephemeral_ports"]
    first, last = fact.value
    for low, high in PORTS:
        # The rest of this range without the ephemeral one, below it or above it.
        for start, end in ((low, min(high, first - 1)), (max(low, last + 1), high)):
            if end - start + 1 >= FEWEST_PORTS:
                why = f"outside the ephemeral ports, {first} to {last}"
                context.derive("job.ports", [start, end], why, "facts:cluster.ephemeral_ports")
                return
    message = f"the ephemeral ports {first} to {last} leave no range for the rendezvous"
    yield Diagnostic("R401", message, fact.span, helps=("correct `ephemeral_ports` in the cluster's facts",))
