"""The ``cluster.*`` facts: a cluster's rules for requests, with defaults for a cluster without a description."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ratc.diagnostics import Diagnostic, Severity
from ratc.facts.cluster import LAUNCHERS, Choice, Cluster, word
from ratc.plan import Value, Values
from ratc.units import memory_bytes, walltime_seconds

#: Keys of the file that a plan takes as they are.
_PLAIN = (
    "name",
    "version",
    "gpu_request",
    "max_array_size",
    "modules_init",
    "container",
    "container_options",
    "interface",
    "variables",
    "scratch",
    "ephemeral_ports",
    "health_check",
    "expedited_requeue",
    "lsf.limit_unit",
    "lsf.rusage_unit",
    "lsf.memory_limit",
    "lsf.rusage",
    "lsf.explicit_units",
)
#: Values without facts; any other fact is unknown (None). The schema's defaults are the same.
_UNKNOWN: dict[str, Any] = {
    "gpu_request": "gpus-per-node",
    "container_options": [],
    "variables": {},
    "ephemeral_ports": [32768, 60999],
    "health_check": False,
    "expedited_requeue": False,
    "lsf.limit_unit": "KB",
    "lsf.memory_limit": "process",
    "lsf.rusage": "host",
    "lsf.explicit_units": True,
    "requeue": True,
    "preemption": "none",
    "grace_seconds": 0,
}
_OF_A_PART = (
    "node_type",
    "gpu_type",
    "constraint",
    "block_nodes",
    "cpu_architecture",
    "walltime_seconds",
    "max_walltime_seconds",
    "max_memory_per_cpu_bytes",
    "requeue",
    "preemption",
    "grace_seconds",
    "part_nodes",
)


#: Facts of a node type for predicted times and costs. In a lock is only the network's rate, if the nodes are tested.
_COSTS = ("gpu_link_gb_s", "network_gb_s", "price_per_gpu_hour", "currency", "watts_per_gpu")


def unknown(settings: Values, scheduler: str) -> tuple[dict[str, Value], tuple[Diagnostic, ...]]:
    """The facts of a cluster that nobody has described. Code: R320 (a warning)."""
    values = {key: Value(_UNKNOWN.get(key), "default", "no cluster facts") for key in (*_PLAIN, *_OF_A_PART, *_COSTS)}
    values["scheduler"] = Value(scheduler, "default", "the target")
    values["launcher"] = Value(LAUNCHERS[scheduler][0], "default", f"usual on {scheduler}")
    asked = settings[f"resources.{word(scheduler)}"]
    values["partition"] = asked if asked.value is not None else Value(None, "default", "no cluster facts")
    message = "the spec names no cluster: the job is not checked against the limits of nodes and queues"
    helps = (
        "name the cluster's facts: `resources.cluster`, or `--cluster NAME`",
        f"`ratc probe {scheduler} -o clusters/NAME.yaml`, run on a login node, writes such facts",
    )
    return _prefixed(values), (Diagnostic("R320", message, None, helps=helps, severity=Severity.WARNING),)


def known(cluster: Cluster, choice: Choice, settings: Values, why: str) -> dict[str, Value]:
    """The facts of the part of a cluster that a spec means; ``why`` says why this partition."""
    file = f"the facts of {cluster.name}"
    values = {key: _fact(cluster.values[key], file) for key in _PLAIN}
    values["scheduler"] = _fact(cluster.values["scheduler"], file)
    launcher = cluster.values["launcher"]
    usual = Value(LAUNCHERS[cluster.scheduler][0], "default", f"usual on {cluster.scheduler}")
    values["launcher"] = usual if launcher.value is None else _fact(launcher, file)
    asked = settings[f"resources.{cluster.word}"]
    chosen = Value(choice.partition.name, "cluster", why, span=choice.partition.span)
    values["partition"] = asked if asked.value is not None else chosen
    values |= dict(_partition(cluster, choice)) | dict(_node_type(choice, settings))
    return _prefixed(values)


def _partition(cluster: Cluster, choice: Choice) -> Iterator[tuple[str, Value]]:
    part, name = choice.partition.values, f"{cluster.word} `{choice.partition.name}`"
    longest, default = part["max_walltime"], part["default_walltime"]
    yield "max_walltime_seconds", _seconds(longest, f"the longest of {name}")
    # slurm.conf(5), DefaultTime: "If not set then MaxTime will be used"; LSF kills at RUNLIMIT's maximum.
    taken = (
        _seconds(default, f"the default of {name}") if default.value else _seconds(longest, f"the longest of {name}")
    )
    yield "walltime_seconds", taken
    per_cpu = part["max_memory_per_cpu"]
    most = None if per_cpu.value is None else memory_bytes(per_cpu.value)
    yield "max_memory_per_cpu_bytes", replace(_fact(per_cpu, name), value=most)
    for key in ("requeue", "preemption", "grace_seconds"):
        yield key, _fact(part[key], name)


def _node_type(choice: Choice, settings: Values) -> Iterator[tuple[str, Value]]:
    if choice.node_type is None:
        for key in ("node_type", "gpu_type", "constraint", "block_nodes", "cpu_architecture", "part_nodes"):
            yield key, Value(None, "default", "the facts file describes the nodes")
        return
    count = choice.partition.nodes[choice.node_type.name]
    yield "part_nodes", _fact(count, f"nodes of type `{choice.node_type.name}` in `{choice.partition.name}`")
    asked = settings["resources.node_type"]
    chosen = Value(choice.node_type.name, "cluster", choice.why, span=choice.node_type.span)
    yield "node_type", asked if asked.value is not None else chosen
    for key in ("gpu_type", "constraint", "block_nodes", "cpu_architecture", *_COSTS):
        yield key, _fact(choice.node_type.values[key], f"nodes of type `{choice.node_type.name}`")


def _seconds(limit: Value, why: str) -> Value:
    if limit.value is None:
        return Value(None, "default", "no limit is known")
    return Value(walltime_seconds(limit.value), "cluster", why, span=limit.span)


def _fact(given: Value, why: str) -> Value:
    return Value(given.value, "default" if given.origin == "default" else "cluster", why, span=given.span)


def _prefixed(values: dict[str, Value]) -> dict[str, Value]:
    return {f"cluster.{key}": value for key, value in values.items()}
