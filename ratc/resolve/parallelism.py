"""The number of processes, their device, and their communication backend. Codes: R303, R306."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity
from ratc.resolve.context import Context


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive one process per GPU; on the CPU one process in all."""
    settings, facts = context.settings, context.facts
    nodes = settings.get_as(int, "resources.nodes")
    total = settings.maybe(int, "resources.num_gpus")
    per_node = settings.maybe(int, "resources.gpus_per_node")
    if total is not None and total % nodes:
        near = [str(n) for n in (total // nodes * nodes, -(-total // nodes) * nodes) if n]
        message = f"{total} GPUs cannot be split over {nodes} nodes"
        yield Diagnostic("R303", message, settings["resources.num_gpus"].span, helps=(f"use {' or '.join(near)}",))
        return
    inputs: tuple[str, ...]
    if per_node is not None:
        gpus, why, inputs = per_node, "as the spec asks", ("spec:resources.gpus_per_node",)
    elif total is not None:
        gpus, why, inputs = (
            total // nodes,
            f"{total} GPUs over {nodes} nodes" if nodes > 1 else "as the spec asks",
            ("spec:resources.num_gpus", "spec:resources.nodes"),
        )
    else:
        gpus = facts.get_as(int, "gpus_per_node")
        where = facts["gpus_per_node"].reason
        why, inputs = (f"every GPU of {where}" if gpus else f"no GPU on {where}"), ("facts:gpus_per_node",)
        if gpus > 1 and facts["card.is_slice"].value:
            gpus, why, inputs = 1, "CUDA shows a process one slice of a card", (*inputs, "facts:card.is_slice")
    available = facts.get_as(int, "gpus_per_node")
    if 1 < gpus <= available and facts["card.is_slice"].value:
        span = settings["resources.gpus_per_node"].span or settings["resources.num_gpus"].span
        message = f"{gpus} slices of a card (MIG) per node are asked for, but CUDA shows a process at most one"
        yield Diagnostic("R303", message, span, helps=("use 1 per node, or nodes with whole cards",))
        return
    if gpus > available:
        span = settings["resources.gpus_per_node"].span or settings["resources.num_gpus"].span
        message = f"{gpus} GPUs per node are asked for, but {facts['gpus_per_node'].reason} has {available}"
        yield Diagnostic("R303", message, span, helps=(f"use at most {available} per node",) if available else ())
        return
    cuda = gpus > 0
    context.derive("hardware.device", "cuda" if cuda else "cpu", why, *inputs)
    for name, key in (
        ("card", "id"),
        ("compute_capability", "compute_capability"),
        ("memory_bytes", "memory_bytes"),
    ):
        fact = facts[f"card.{key}"]
        context.derive(
            f"hardware.{name}",
            fact.value if cuda else None,
            fact.reason if cuda else "trains on the CPU",
            f"facts:card.{key}",
            "hardware.device",
        )
    _processor(context)
    processes = context.derive(
        "parallel.processes_per_node",
        gpus if cuda else 1,
        "one per GPU" if cuda else "one on the CPU of each node" if nodes > 1 else "one on the CPU",
        "hardware.device",
        *inputs,
    )
    context.keep("resources.nodes", under="parallel.nodes")
    reason = f"{nodes} node{'s' if nodes > 1 else ''} x {processes}"
    context.derive("parallel.world_size", nodes * processes, reason, "parallel.nodes", "parallel.processes_per_node")
    context.keep("distributed.timeout_seconds", under="parallel.timeout_seconds")
    yield from _backend(context, cuda)


def _processor(context: Context) -> None:
    """Take the nodes' processor from the cluster's facts, else from their card, if one of them has it."""
    for path in ("cluster.cpu_architecture", "card.cpu_architecture"):
        fact = context.facts.get(path)
        if fact is not None and fact.value is not None:
            why = fact.reason if path.startswith("cluster") else f"the one that {context.facts['card.name'].value} has"
            context.derive("hardware.cpu_architecture", fact.value, why, f"facts:{path}")
            return


def _backend(context: Context, cuda: bool) -> Iterator[Diagnostic]:
    asked = context.settings["distributed.backend"]
    fitting = "nccl" if cuda else "gloo"
    if asked.value in (None, fitting) or (cuda and asked.value == "gloo"):
        if asked.value:
            context.keep("distributed.backend", under="parallel.backend")
        else:
            context.derive("parallel.backend", fitting, "nccl on GPUs" if cuda else "gloo on CPUs", "hardware.device")
        return
    if not context.settings["distributed.auto_detect"].value:
        message = "the backend `nccl` needs GPUs, and this run has none"
        yield Diagnostic("R306", message, asked.span, helps=("use `gloo`, or set `auto_detect: true`",))
        return
    context.derive("parallel.backend", "gloo", "nccl needs GPUs", "hardware.device", "spec:distributed.backend")
    message = "the backend `nccl` needs GPUs, and this run has none: `gloo` is used"
    yield Diagnostic("R306", message, asked.span, severity=Severity.WARNING)
