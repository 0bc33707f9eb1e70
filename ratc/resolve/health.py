"""The check of the nodes' health before training: its expectations, and how many nodes may be left out.

Codes: R380, R381.
"""

from __future__ import annotations

from collections.abc import Iterator

from ratc import elastic
from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Value
from ratc.resolve.context import Context
from ratc.units import counted

#: Launchers whose processes start without a process of their own for the node, which would make the check.
_WITHOUT_NODE = {"ray": "Ray runs the study's trials", "srun": "`launcher: srun` starts each process of a node itself"}


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive the section `health`, if the nodes are checked."""
    asked, fact = context.settings["resources.health_check"], context.facts.get("cluster.health_check")
    if asked.value == "never" or (asked.value == "auto" and not (fact and fact.value)):
        return
    launcher = context.values.get("job.launcher")
    why = _WITHOUT_NODE.get(str(launcher.value)) if launcher is not None else None
    if why is not None:
        if asked.value == "always":
            message = f"`health_check: always` has no effect: {why}"
            helps = ("use another launcher, or `health_check: never`",)
            yield Diagnostic("R380", message, asked.span, helps=helps, severity=Severity.WARNING)
        return
    _rates(context)
    yield from _most_excluded(context)


def _rates(context: Context) -> None:
    """Take the rates of the card's data sheet and of the network."""
    cuda = context.value("hardware.device") == "cuda"
    rates, bandwidth = (context.facts[f"card.{key}"].value if cuda else None for key in ("tflops", "bandwidth_gb_s"))
    matrix = rates.get(context.value("training.precision"), rates["fp32"]) if rates else None
    reason = f"the data sheet of {context.facts['card.name'].value}" if rates else "no data sheet is known"
    context.derive("health.matrix_tflops", matrix, reason, "facts:card.tflops", "training.precision")
    context.derive("health.memory_gb_s", bandwidth, reason, "facts:card.bandwidth_gb_s")
    several = context.value("parallel.nodes") > 1 or elastic.is_range(context.settings)
    network = context.facts.get("cluster.network_gb_s") if several else None
    if network is None or network.value is None:
        why = "the cluster's facts do not say" if several else "one node"
        context.derive("health.network_gb_s", None, why, "parallel.nodes")
    else:
        path = ("facts:cluster.network_gb_s",)
        context.values["health.network_gb_s"] = Value(
            float(network.value), network.origin, network.reason, path, network.span
        )


def _most_excluded(context: Context) -> Iterator[Diagnostic]:
    """Take the limit, but leave as many nodes as the job needs, of a range the fewest."""
    asked, there = context.settings["resources.max_excluded_nodes"], context.facts.get("cluster.part_nodes")
    if there is None or there.value is None:
        context.keep("resources.max_excluded_nodes", under="health.max_excluded_nodes")
        return
    nodes = elastic.fewest(context.settings)
    spare = max(0, there.value - nodes)
    if asked.value <= spare:
        context.keep("resources.max_excluded_nodes", under="health.max_excluded_nodes")
        return
    reason = f"{there.reason}: {there.value}, of which the job needs {nodes}"
    inputs = ("spec:resources.max_excluded_nodes", "facts:cluster.part_nodes", "parallel.nodes")
    context.derive("health.max_excluded_nodes", spare, reason, *inputs)
    if context.settings.given("resources.max_excluded_nodes"):
        message = (
            f"`max_excluded_nodes` is {asked.value}, and {counted(spare, 'node')} can be left out: there"
            f" are {counted(there.value, 'node')} of this kind, and the job needs {nodes}"
        )
        yield Diagnostic("R381", message, asked.span, helps=(f"use at most {spare}",), severity=Severity.WARNING)
