"""Hardware facts: the catalogue of cards, and what one machine type has. Pure: files are read by the caller."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import yaml

from ratc import resources
from ratc.diagnostics import Diagnostic, Span, did_you_mean
from ratc.plan import Value, Values

MIB = 1 << 20
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator card. Memory is what the driver reports, in bytes."""

    id: str
    name: str
    memory_bytes: int
    compute_capability: str | None
    bf16: bool
    fp16: bool
    tf32: bool
    fp8: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found on a machine: its GPUs, all of one kind, its CPU cores and its memory in bytes."""

    gpus: int
    card: Card | None
    cpus: int
    memory_bytes: int | None
    source: str


@cache
def _catalogue() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded: dict[str, Any] = yaml.load(resources.read("facts", "cards.yaml"), Loader=loader)
    return loaded


def card_names() -> list[str]:
    """The ids of all cards of the catalogue."""
    return list(_catalogue()["cards"])


def find_card(text: str) -> Card | tuple[str, ...]:
    """The card that a spelling means, or the ids it could mean (none when it means nothing)."""
    wanted = re.sub(r"[\s_]+", "-", text.strip().lower())
    catalogue = _catalogue()
    for identifier, entry in catalogue["cards"].items():
        if wanted == identifier or wanted in entry["aliases"]:
            return Card(
                identifier,
                entry["name"],
                entry["memory_mib"] * MIB,
                entry["compute_capability"],
                **{kind: entry[kind] for kind in ("bf16", "fp16", "tf32", "fp8")},
            )
    return tuple(catalogue["ambiguous"].get(wanted, ()))


def describe_card(name: str, memory_bytes: int, compute_capability: str) -> Card:
    """A card that the catalogue lacks. NVIDIA's formats follow from the compute capability (CUDA C++ guide, table of
    arithmetic types): fp16 matrix units from 7.0, bf16 and TF32 from 8.0, FP8 from 8.9."""
    number = tuple(int(part) for part in compute_capability.split("."))
    return Card(
        re.sub(r"[\s_]+", "-", name.strip().lower()),
        name,
        memory_bytes,
        compute_capability,
        bf16=number >= (8, 0),
        fp16=number >= (7, 0),
        tf32=number >= (8, 0),
        fp8=number >= (8, 9),
    )


def resolve_card(text: str, span: Span | None) -> tuple[Card | None, tuple[Diagnostic, ...]]:
    """The card for a spelling in a spec or a facts file. Code: R301."""
    found = find_card(text)
    if isinstance(found, Card):
        return found, ()
    if found:
        return None, (Diagnostic("R301", f"`{text}` could be several cards", span, helps=(f"use {_either(found)}",)),)
    catalogue = _catalogue()
    spellings = [
        *catalogue["cards"],
        *(alias for entry in catalogue["cards"].values() for alias in entry["aliases"]),
    ]
    helps = did_you_mean(re.sub(r"[\s_]+", "-", text.strip()), spellings) or ("cards: " + ", ".join(card_names()),)
    return None, (Diagnostic("R301", f"the catalogue has no card `{text}`", span, helps=helps),)


def memory_bytes(text: str | int) -> int:
    """Bytes of a size such as ``128GB``, ``1.5T`` or 64 (GB). Slurm and LSF count a K, M, G or T in powers of 1024."""
    match = re.fullmatch(r"([0-9.]+) ?([KMGT]?)(?:I?B)?", str(text).upper())
    assert match, "the schema has checked the form"
    unit = match[2] or "G"
    return int(float(match[1]) * _UNITS[unit])


def hardware(
    settings: Values, file: Values | None, machine: Machine | None
) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """The facts a plan is made from: of a facts file, else of the card that the spec names, else of this machine.

    ``machine`` is None where the target is not this machine. Codes: R301, R309, R311.
    """
    if file:
        return _from_file(settings, file)
    return _from_spec(settings, machine)


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
    }
    return Values({**facts, **_card_values(card, "the facts file", given.span)}), ()


def _from_spec(settings: Values, machine: Machine | None) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    named, asked = settings["resources.gpu"], _gpus_asked(settings)
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
            has = f"this machine has {machine.gpus or 'no'} GPU{'' if machine.gpus == 1 else 's'}"
            helps = (
                "name the card of the machine that will run this: `resources.gpu`",
                "or train on the CPU: `num_gpus: 0`",
            )
            return None, (Diagnostic("R309", f"{asked} GPUs are asked for, but {has}", value.span, helps=helps),)
    facts = {
        "gpus_per_node": Value(available or 0, "hardware" if card else "spec", source, span=span),
        "cpus": _given_or_found(cpus, machine.cpus if machine else None, machine),
        "memory_bytes": _given_or_found(memory, machine.memory_bytes if machine else None, machine),
        "nodes": Value(settings["resources.nodes"].value, settings["resources.nodes"].origin, source),
    }
    return Values({**facts, **_card_values(card, source, span)}), ()


def _gpus_asked(settings: Values) -> int | None:
    per_node, total = (
        settings.maybe(int, "resources.gpus_per_node"),
        settings.maybe(int, "resources.num_gpus"),
    )
    if per_node is not None or total is None:
        return per_node
    return -(-total // settings.get_as(int, "resources.nodes"))


def needs_machine(settings: Values) -> bool:
    """Whether the spec leaves open what only the machine itself can tell."""
    unknown_gpus = _gpus_asked(settings) != 0 and settings["resources.gpu"].value is None
    return unknown_gpus or settings["resources.cpus"].value is None


def _given_or_found(given: Value, found: int | None, machine: Machine | None) -> Value:
    if given.value is None:
        return Value(found, "hardware", machine.source if machine else "unknown")
    return Value(given.value, given.origin, given.reason, span=given.span)


def _fact(value: Any, source: Value) -> Value:
    return Value(value, "hardware", "the facts file", span=source.span)


def _card_values(card: Card | None, source: str, span: Span | None) -> Mapping[str, Value]:
    names = ("id", "name", "memory_bytes", "compute_capability", "bf16", "fp16", "tf32", "fp8")
    return {
        f"card.{name}": Value(getattr(card, name) if card else None, "hardware", source, span=span) for name in names
    }


def _either(words: tuple[str, ...]) -> str:
    quoted = [f"`{word}`" for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
