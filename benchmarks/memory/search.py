"""How long the search for a micro-batch takes on a trace that is at hand: `python benchmarks/memory/search.py
[TRACE.json]`.

Without a trace it makes one of some 25,000 events, of 260 layers. Medians over runs; the search is for a share of 720
samples, which has 30 divisors, on a card that a part of them fits.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ratc.memory.choose import Searcher, Variant
from ratc.memory.estimate import Predictor
from ratc.memory.terms import Device
from ratc.memory.trace import KINDS, VERSION, Trace, parse
from ratc.memory.zero import Strategy

PHASES = ["build", "input", "forward", "loss", "backward", "clip", "optimizer", "zero_grad"]


@dataclass(frozen=True)
class AlwaysSame:
    """The traces of a variant: one for every number of micro-batches and samples."""

    of_any: Trace

    def trace(self, accumulating: bool, one_sample: bool) -> Trace:
        """The one."""
        return self.of_any


def made(layers: int = 260) -> dict[str, Any]:
    """A trace of layers with temporaries of mixed sizes, two steps, an optimizer with two moments."""
    rnd = random.Random(0)
    events: list[list[float]] = []
    steps, gradients = [], []
    count = 0

    def allocate(kind: str, phase: str, module: int, fixed: float, growth: float) -> int:
        nonlocal count
        events.append([count, fixed, growth, PHASES.index(phase), module, KINDS.index(kind)])
        count += 1
        return count - 1

    def working(phase: str, module: int) -> list[int]:
        return [allocate("temporary", phase, module, 0, rnd.choice((4e5, 8e5, 3e6))) for _ in range(9)]

    def free(blocks: list[int]) -> None:
        events.extend([block] for block in blocks)

    for layer in range(layers):
        allocate("parameter", "build", layer + 1, 1 << 22, 0)
    for step in range(2):
        steps.append(len(events))
        kept = []
        for layer in range(layers):
            free(working("forward", layer + 1))
            kept.append(
                [allocate("activation", "forward", layer + 1, 0, size) for size in (15e5, 7e5, 3e5 + 512 * layer)]
            )
        for layer in reversed(range(layers)):
            gradients.append(allocate("gradient", "backward", layer + 1, 1 << 22, 0))
            free(working("backward", layer + 1) + kept.pop())
        for layer in range(layers if step == 0 else 0):
            for _ in range(2):
                allocate("optimizer", "optimizer", layer + 1, 1 << 22, 0)
        free(gradients)
        gradients.clear()
    elements = layers << 20
    parameters = {"count": elements, "trainable": elements, "bytes": 4 * elements, "largest_module_bytes": 1 << 22}
    modules = ["", *(f"layer{number}" for number in range(layers))]
    body = {"phases": PHASES, "kinds": list(KINDS), "modules": modules, "steps": steps, "events": events}
    return {"trace_version": VERSION, "torch": "none", "parameters": parameters, **body}


def median(what: Callable[[], object], runs: int = 7) -> float:
    """Milliseconds."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1000


def main() -> int:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?", help="a trace file, as the cache keeps them")
    name = parser.parse_args().trace
    text = json.dumps(made())
    if name:
        with open(name, encoding="utf-8") as file:
            text = file.read()
    trace = parse(json.loads(text))
    wanted = Variant("bf16")
    smallest, largest = (Predictor(trace).unbounded(micro).peak_reserved_bytes for micro in (1, 720))
    card = Device("card", smallest + (largest - smallest) // 3 + (2 << 30), "8.0")
    found = Searcher({wanted: AlwaysSame(trace)}, 720).choose(wanted, Strategy(), card)
    chosen = found.estimate.micro_batch if found else None
    print(
        f"{len(trace.program.ops)} events; of a share of 720 it chooses {chosen} on {card.memory_bytes / 2**30:.1f} GiB"
    )
    cases: dict[str, Callable[[], object]] = {
        "read and check the trace": lambda: parse(json.loads(text)),
        "one replay": lambda: Predictor(trace).unbounded(8),
        "a whole search": lambda: Searcher({wanted: AlwaysSame(trace)}, 720).choose(wanted, Strategy(), card),
    }
    for label, what in cases.items():
        print(f"{label:<26} {median(what):7.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
