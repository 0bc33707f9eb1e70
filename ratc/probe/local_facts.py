"""A machine -> hardware facts, as ``--facts`` takes them."""

from __future__ import annotations

from typing import Any

from ratc.facts import MIB, Card, Machine, find_card
from ratc.yaml.write import mapping


def text(machine: Machine) -> str:
    """The facts file of a machine. The driver's own figure for the memory is given if the catalogue's differs."""
    keys: dict[str, Any] = {"gpus_per_node": machine.gpus}
    card = machine.card
    if card:
        keys["gpu"] = card.id
        known = find_card(card.id)
        if not isinstance(known, Card) or known.memory_bytes != card.memory_bytes:
            keys |= {"gpu_memory_mib": card.memory_bytes // MIB, "compute_capability": card.compute_capability}
    keys["cpus"] = machine.cpus
    if machine.memory_bytes:
        keys["memory"] = f"{machine.memory_bytes // MIB}MB"
    return "# Written by `ratc probe local`: the hardware of this machine.\n" + mapping(keys)
