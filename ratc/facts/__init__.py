"""Hardware facts: those of one machine type, and a cluster's policy. Pure: files are read by the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ratc.diagnostics import Diagnostic, Span
from ratc.facts import limits, policy
from ratc.facts.cards import MIB, Card, card_names, describe_card, find_card, resolve_card
from ratc.facts.cluster import LAUNCHERS, Choice, Cluster, Part, card_of, contradictions, gpus_asked, in_brackets
from ratc.plan import Origin, Value, Values
from ratc.units import counted, memory_bytes

__all__ = [
    "MIB",
    "Card",
    "Cluster",
    "Machine",
    "Part",
    "card_names",
    "contradictions",
    "describe_card",
    "find_card",
    "hardware",
    "needs_machine",
    "resolve_card",
]


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware of a machine: its number of GPUs, all of one kind, its CPU cores and its memory in bytes."""

    gpus: int
    card: Card | None
    cpus: int
    memory_bytes: int | None
    source: str


def hardware(
    settings: Values,
    file: Values | None,
    machine: Machine | None,
    cluster: Cluster | None = None,
    target: str = "local",
) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """Return the facts for a plan: those of a facts file, else of the cluster, else of the card in the spec, else of
    this machine. For a scheduler's target they include ``cluster.*``, the cluster's rules for requests.

    ``machine`` is None if the target is not this machine. Codes: R301, R309, R311, R320-R329.
    """
    if target not in LAUNCHERS:
        return _from_file(settings, file) if file else _from_spec(settings, machine)
    if cluster is None:
        customs, said = policy.unknown(settings, target)
        own, found = _from_file(settings, file) if file else _from_spec(settings, None)
    elif cluster.scheduler != target:
        message = f"the cluster {cluster.name} runs {cluster.scheduler}, and the target is {target}"
        note = f"`scheduler`{in_brackets(cluster.values['scheduler'].span)}"
        helps = (f"use `--target {cluster.scheduler}`, or name another cluster",)
        return None, (Diagnostic("R327", message, settings["resources.cluster"].span, (note,), helps),)
    else:
        choice, why, said = limits.choose(cluster, settings, described=file is not None)
        if choice is None:
            return None, said
        customs = policy.known(cluster, choice, settings, why)
        own, found = _from_file(settings, file) if file else _from_cluster(settings, choice)
    return (Values({**own, **customs}) if own else None), (*said, *found)


def _from_cluster(settings: Values, choice: Choice) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """Return a job's largest share of one node of the chosen type. Codes: R301, R311."""
    node_type, allowed = choice.node_type, choice.partition.values
    assert node_type is not None
    has, source = node_type.values, f"a node of type `{node_type.name}`"
    gpus, card = has.get_as(int, "gpus_per_node"), card_of(node_type)
    wanted = settings["resources.gpu"]
    span = has["gpu"].span or node_type.span
    if gpus and card is None and gpus_asked(settings) != 0:
        if wanted.value is None:
            message = f"the facts do not say which GPUs nodes of type `{node_type.name}` have"
            helps = (
                "add `gpu` there, or `gpu_memory_mib` and `compute_capability`",
                "or name the card in the spec: `resources.gpu`",
            )
            return None, (Diagnostic("R311", message, node_type.span, helps=helps),)
        card, found = resolve_card(str(wanted.value), wanted.span)
        if card is None:
            return None, found
        span = wanted.span or span
    memory = has["memory"].value
    per_gpu = allowed["max_cpus_per_gpu"].value if gpus and gpus_asked(settings) != 0 else None
    facts = {
        "gpus_per_node": Value(gpus, "cluster", source, span=has["gpus_per_node"].span),
        "cpus": _least(
            Value(has["cpus"].value, "cluster", source, span=has["cpus"].span),
            (allowed["max_cpus_per_node"].value, allowed["max_cpus_per_node"]),
            (per_gpu and per_gpu * gpus, allowed["max_cpus_per_gpu"]),
        ),
        "memory_bytes": _least(
            Value(None if memory is None else memory_bytes(memory), "cluster", source, span=has["memory"].span),
            (_bytes(allowed["max_memory_per_node"]), allowed["max_memory_per_node"]),
        ),
        "nodes": Value(
            choice.partition.nodes[node_type.name].value,
            "cluster",
            source,
            span=choice.partition.nodes[node_type.name].span,
        ),
    }
    return Values({**facts, **_card_values(card, source, span, "cluster")}), ()


def _least(has: Value, *limits: tuple[int | None, Value]) -> Value:
    """Return the node's amount, or the lowest limit if that is lower."""
    for most, limit in limits:
        if most is not None and (has.value is None or most < has.value):
            has = Value(most, "cluster", "what the partition allows", span=limit.span)
    return has


def _bytes(size: Value) -> int | None:
    return None if size.value is None else memory_bytes(size.value)


def _from_file(settings: Values, file: Values) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    wanted = settings["resources.gpu"]
    gpus = file.get_as(int, "gpus_per_node")
    card: Card | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    given = file["gpu"]
    capability = file.maybe(str, "compute_capability")
    memory_mib = file.maybe(int, "gpu_memory_mib")
    if gpus and capability and memory_mib:
        card = describe_card(str(given.value or "gpu"), memory_mib * MIB, capability)
    elif gpus and given.value is None:
        helps = ("add `gpu`, or `gpu_memory_mib` and `compute_capability`",)
        diagnostics = (
            Diagnostic("R311", "the facts have GPUs but do not say which", file["gpus_per_node"].span, helps=helps),
        )
    elif gpus:
        card, diagnostics = resolve_card(str(given.value), given.span)
        if card:
            diagnostics = _contradictions(card, file)
    if card and wanted.value is not None:
        asked, more = resolve_card(str(wanted.value), wanted.span)
        diagnostics += more
        if asked and asked.id != card.id:
            note = f"the facts have {card.name}" + (f" ({given.span.place})" if given.span else "")
            message = f"the spec asks for {asked.name}, which the facts do not have"
            diagnostics += (Diagnostic("R311", message, wanted.span, (note,)),)
    if diagnostics:
        return None, diagnostics
    memory = file["memory"].value
    facts = {
        "gpus_per_node": _fact(gpus, file["gpus_per_node"]),
        "cpus": _fact(file.get_as(int, "cpus"), file["cpus"]),
        "memory_bytes": _fact(memory_bytes(memory) if memory is not None else None, file["memory"]),
        "nodes": _fact(file.get_as(int, "nodes"), file["nodes"]),
        "measured": file["measured"],
    }
    return Values({**facts, **_card_values(card, "the facts file", given.span)}), ()


def _contradictions(card: Card, file: Values) -> tuple[Diagnostic, ...]:
    """Return a finding for each value of a facts file that contradicts the card's in the catalogue. Code: R311."""
    memory, capability = file["gpu_memory_mib"], file["compute_capability"]
    helps = ("for a card that is not in the catalogue, give both under a name of your own",)
    cases = (
        (memory, f"{card.memory_bytes // MIB} MiB", _differ(memory.value, card.memory_bytes // MIB)),
        (capability, f"{card.compute_capability}", capability.value not in (None, card.compute_capability)),
    )
    return tuple(
        Diagnostic("R311", f"the facts give {card.name} {given.value}, and it has {has}", given.span, helps=helps)
        for given, has, wrong in cases
        if wrong
    )


def _differ(given: int | None, known: int) -> bool:
    """Whether two sizes belong to different cards: drivers' numbers for the same card differ by some percent."""
    return given is not None and abs(given - known) > 0.05 * known


def _from_spec(settings: Values, machine: Machine | None) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    named, asked = settings["resources.gpu"], gpus_asked(settings)
    cpus, memory = settings["resources.cpus"], settings["resources.memory"]
    if memory.value is not None:
        memory = replace(memory, value=memory_bytes(memory.value))
    card, source, span, available = None, "the spec", named.span, asked
    if asked != 0 and named.value is not None:
        card, diagnostics = resolve_card(str(named.value), named.span)
        if card is None:
            return None, diagnostics
        available = asked if asked is not None else 1
    elif asked != 0 and machine:
        card, source, available = machine.card, machine.source, machine.gpus
        if asked is not None and asked > machine.gpus:
            value = settings[
                "resources.gpus_per_node" if settings["resources.gpus_per_node"].value else "resources.num_gpus"
            ]
            wanted = f"{asked} GPU{'s are' if asked > 1 else ' is'}"
            has = f"this machine has {counted(machine.gpus, 'GPU') if machine.gpus else 'no GPUs'}"
            of_cluster = ("use the cluster's nodes: `--target slurm` or `--target lsf`",)
            helps = (
                *(of_cluster if settings["resources.cluster"].value is not None else ()),
                "name the card of the machine that will run it: `resources.gpu`",
                "or train on the CPU: `num_gpus: 0`",
            )
            return None, (Diagnostic("R309", f"{wanted} asked for, but {has}", value.span, helps=helps),)
    facts = {
        "gpus_per_node": Value(available or 0, "hardware" if card else "spec", source, span=span),
        "cpus": _given_or_found(cpus, machine.cpus if machine else None, machine),
        "memory_bytes": _given_or_found(memory, machine.memory_bytes if machine else None, machine),
        "nodes": Value(settings["resources.nodes"].value, settings["resources.nodes"].origin, source),
    }
    return Values({**facts, **_card_values(card, source, span)}), ()


def needs_machine(settings: Values) -> bool:
    """Whether the spec leaves GPUs or CPU cores open, so that the machine must be probed."""
    unknown_gpus = gpus_asked(settings) != 0 and settings["resources.gpu"].value is None
    return unknown_gpus or settings["resources.cpus"].value is None


def _given_or_found(given: Value, found: int | None, machine: Machine | None) -> Value:
    if given.value is None:
        return Value(found, "hardware", machine.source if machine else "unknown")
    return Value(given.value, given.origin, given.reason, span=given.span)


def _fact(value: Any, source: Value) -> Value:
    return Value(value, "hardware", "the facts file", span=source.span)


def _card_values(card: Card | None, source: str, span: Span | None, origin: Origin = "hardware") -> Mapping[str, Value]:
    names = (
        "id",
        "name",
        "memory_bytes",
        "compute_capability",
        "bf16",
        "fp16",
        "tf32",
        "fp8",
        "cpu_architecture",
        "is_slice",
    )
    values = {name: getattr(card, name) if card else None for name in names}
    peaks = card.peaks if card else None
    values["tflops"] = {kind: rate / 1e12 for kind, rate in peaks.operations} if peaks else None
    values["bandwidth_gb_s"] = peaks.bandwidth / 1e9 if peaks else None
    return {f"card.{name}": Value(value, origin, source, span=span) for name, value in values.items()}
