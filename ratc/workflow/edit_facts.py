"""Adds a measurement to a facts file, and keeps its other lines and comments."""

from __future__ import annotations

import os

from ratc import compiler, facts, files
from ratc.compiler import File
from ratc.diagnostics import Diagnostic
from ratc.facts import MIB, Machine
from ratc.memory import measured
from ratc.memory.measured import Measurement
from ratc.workflow.read import read
from ratc.yaml.edit import put_items
from ratc.yaml.write import scalar


def add(path: str, new: Measurement, machine: Machine) -> Diagnostic | None:
    """Add a measurement to a facts file, which is made with this machine's facts if it does not exist. A measurement of
    the same step is replaced. Codes: R403, and those of reading a facts file.
    """
    head, replaced, before = _described(machine), [], 0
    if os.path.exists(path):
        file, problem = read(path, named=True)
        if file is None:
            return problem
        values, found = compiler.read_facts(file)
        if values is None:
            return found[0]
        head = file.data.decode()
        known = [measured.read(entry) for entry in values["measured"].value]
        before = len(known)
        replaced = [at for at, one in enumerate(known) if not measured.differences(one.conditions, new.conditions)]
    try:
        content = put_items(head, "measured", [measured.entry(new)], replaced)
    except ValueError as error:
        return _not_editable(path, str(error))
    values, _ = compiler.read_facts(File(path, content.encode()))
    if values is None or len(values["measured"].value) != before - len(replaced) + 1:
        return _not_editable(path, "its `measured` comes from an anchor")
    try:
        files.replace(path, content.encode())
    except OSError as error:
        return Diagnostic("R403", f"cannot write `{os.path.normpath(path)}`: {error.strerror}")
    return None


def _not_editable(path: str, reason: str) -> Diagnostic:
    return Diagnostic("R403", f"cannot add to `{os.path.normpath(path)}`: {reason}", helps=("name another file",))


def _described(machine: Machine) -> str:
    card = machine.card
    lines = [f"gpus_per_node: {machine.gpus}"]
    if card:
        lines.append(f"gpu: {scalar(card.id)}")
        if not isinstance(facts.find_card(card.id), facts.Card):
            lines.append(f"gpu_memory_mib: {card.memory_bytes // MIB}")
            lines.append(f"compute_capability: {scalar(card.compute_capability)}")
    lines.append(f"cpus: {machine.cpus}")
    if machine.memory_bytes:
        lines.append(f"memory: {machine.memory_bytes >> 30}GB")
    return "".join(f"{line}\n" for line in lines)
