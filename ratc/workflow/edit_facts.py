"""Puts a measurement into a facts file, which keeps its other lines, comments too."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ratc import compiler, facts, files
from ratc.compiler import File
from ratc.diagnostics import Diagnostic
from ratc.facts import MIB, Machine
from ratc.memory import measured
from ratc.memory.measured import Measurement
from ratc.workflow.read import read
from ratc.yaml.write import scalar

#: The key and all that is indented below it.
_BLOCK = re.compile(r"^measured:.*\n?(?:(?:[ \t-].*)?\n|[ \t-].*$)*", re.MULTILINE)


def add(path: str, new: Measurement, machine: Machine) -> Diagnostic | None:
    """Write the facts of this machine with the measurement, or add it to those that are there; one of the same step is
    replaced. Codes: R403, and those of reading a facts file.
    """
    head, kept = _described(machine), []
    if os.path.exists(path):
        file, problem = read(path, named=True)
        if file is None:
            return problem
        values, found = compiler.read_facts(file)
        if values is None:
            return found[0]
        kept = [measured.read(entry) for entry in values["measured"].value]
        head = _BLOCK.sub("", file.data.decode())
        head += "" if head.endswith("\n") or not head else "\n"
    kept = [one for one in kept if measured.differences(one.conditions, new.conditions)]
    content = head + text([*kept, new])
    values, _ = compiler.read_facts(File(path, content.encode()))
    if values is None or len(values["measured"].value) != len(kept) + 1:
        message = f"cannot add to `{os.path.normpath(path)}`: its `measured` is written in a way of its own"
        return Diagnostic("R403", message, helps=("name another file",))
    try:
        files.replace(path, content.encode())
    except OSError as error:
        return Diagnostic("R403", f"cannot write `{os.path.normpath(path)}`: {error.strerror}")
    return None


def text(entries: Sequence[Measurement]) -> str:
    """The key `measured` with its entries, in block style."""
    lines = ["measured:"]
    for one in entries:
        mark = "  - "
        for key, value in measured.entry(one).items():
            if key == "points":
                lines += [f"{mark}points:", *(f"      - {scalar(point)}" for point in value)]
            else:
                lines.append(f"{mark}{key}: {scalar(value)}")
            mark = "    "
    return "".join(f"{line}\n" for line in lines)


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
