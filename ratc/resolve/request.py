"""The share of a node that a job asks a scheduler for: cores and memory. Nothing on `local`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ratc.diagnostics import Diagnostic
from ratc.plan import Value
from ratc.resolve.context import Context
from ratc.units import memory_bytes


def derive(context: Context) -> Iterator[Diagnostic]:
    """Take the requested cores and memory, else the GPUs' share of the node; a job without GPUs takes whole nodes."""
    if "cluster.scheduler" in context.facts:
        cpus, memory = context.settings["resources.cpus"], context.settings["resources.memory"]
        if memory.value is not None:
            memory = replace(memory, value=memory_bytes(memory.value))
        _ask(context, cpus, "resources.cpus", "cpus", "job.cpus_per_node", "cores")
        _ask(context, memory, "resources.memory", "memory_bytes", "job.memory_bytes_per_node", "memory")
        yield from _cap(context)


def _cap(context: Context) -> Iterator[Diagnostic]:
    """Limit the job's memory to the site's limit per core; R322 if the spec asks for more.

    ``facts/limits.py`` has looked at the cores that a spec gives; those that the job gets otherwise are known here.
    """
    limit, asked = context.facts["cluster.max_memory_per_cpu_bytes"], context.settings["resources.memory"]
    cpus, memory = context.value("job.cpus_per_node"), context.value("job.memory_bytes_per_node")
    if limit.value is None or cpus is None:
        return
    if memory is None or memory > limit.value * cpus:
        why = f"{limit.reason} allows {limit.value >> 20} MB for each of {cpus} cores"
        if asked.value is not None:
            message = f"{memory >> 20} MB of memory are asked for, but {why}"
            note = f"{cpus} cores: {context.values['job.cpus_per_node'].reason or 'of the spec'}"
            helps = (f"use at most {limit.value * cpus >> 20} MB, or more cores",)
            yield Diagnostic("R322", message, asked.span, (note,), helps)
            return
        path = "facts:cluster.max_memory_per_cpu_bytes"
        context.derive("job.memory_bytes_per_node", limit.value * cpus, why, path, "job.cpus_per_node")


def _ask(context: Context, asked: Value, setting: str, fact: str, path: str, what: str) -> None:
    if asked.value is not None:
        context.values[path] = replace(asked, inputs=(f"spec:{setting}",))
        return
    has, there = context.facts[fact], int(context.facts["gpus_per_node"].value)
    cuda = context.value("hardware.device") == "cuda"
    gpus = int(context.value("parallel.processes_per_node")) if cuda else there
    inputs = (f"facts:{fact}", "facts:gpus_per_node", "parallel.processes_per_node")
    if has.value is None:
        context.derive(path, None, f"the {what} of a node are not known", *inputs)
    elif gpus == there:
        context.derive(path, has.value, f"all {what} of the node", *inputs)
    else:
        share = max(1, has.value * gpus // there)
        context.derive(path, share, f"{gpus} of {there} GPUs: that share of the {what}", *inputs)
