"""A measured step for tests, and the machine that it was measured on."""

from __future__ import annotations

from pathlib import Path

from ratc import compiler, facts
from ratc.compiler import File
from ratc.facts import Machine
from ratc.memory.measured import Conditions, Measurement, Point

GIB = 1 << 30
STEP = "sha256:" + "0" * 64
CONDITIONS = Conditions(STEP, "h100", "bf16", (256, 256), "full", False, "torch")


def measurement(points=((2, 5), (4, 9)), **changes) -> Measurement:
    """Reserved GiB by micro-batch; a GiB less is allocated."""
    made = tuple(Point(size, (gib - 1) * GIB, gib * GIB, (gib + 1) * GIB, 10.0 * size) for size, gib in points)
    known = {"name": "net:Net", "conditions": CONDITIONS, "points": made, "outside_bytes": GIB}
    known |= {"device_total_bytes": 79 * GIB, "gradient_bytes": 2 * GIB}
    known |= {"torch": "2.13.0", "driver": "580.65.06", "date": "2026-11-23"}
    return Measurement(**{**known, **changes})


MACHINE = Machine(8, facts.find_card("h100"), 64, 512 << 30, "this machine")


def read(path: Path):
    values, found = compiler.read_facts(File(str(path), path.read_bytes()))
    assert values is not None, found
    return values
