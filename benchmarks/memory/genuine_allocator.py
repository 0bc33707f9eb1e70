"""Compare the replay with PyTorch's own CUDA caching allocator, and record cases for the tests. No GPU is needed.

`genuine/build.sh FOLDER` builds the driver once; `python -m benchmarks.memory.genuine_allocator FOLDER` then compares,
and with `--record FILE` writes cases: tests/unit/ratc/memory/genuine.json is that of `--seeds 12 --length 400`.
Sequences come from seeds; sizes sit on and around every limit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from ratc.memory.allocator import Allocator, ExpandableAllocator, OutOfMemory

MIB = 1 << 20
EDGES = (1, 512, 513, MIB, MIB + 1, 2 * MIB, 3 * MIB, 10 * MIB - 1, 10 * MIB, 12 * MIB)
SHARES = (None, 0.97, 0.9, 0.8, 0.6)
#: A block's number and its bytes; 0 bytes frees it.
Sequence = list[tuple[int, int]]


def sequence(seed: int, length: int) -> Sequence:
    """Allocations and frees in waves, of mixed sizes, some freed in order and some at random."""
    rnd = random.Random(seed)
    largest = rnd.choice((20, 23, 25, 28))
    live: list[int] = []
    made: Sequence = []
    number = 0
    for position in range(length):
        growing = position * 6 // length % 2 == 0
        if live and rnd.random() > (0.65 if growing else 0.35):
            made.append((live.pop(rnd.randrange(len(live)) if rnd.random() < 0.5 else -1), 0))
        else:
            size = int(2 ** rnd.uniform(4, largest)) if rnd.random() < 0.7 else rnd.choice(EDGES)
            made.append((number, size))
            live.append(number)
            number += 1
    return made


def replayed(made: Sequence, cap: int | None, expandable: bool) -> dict[str, int]:
    """What this project's replay says."""
    allocator = (ExpandableAllocator if expandable else Allocator)(cap)
    places: dict[int, int] = {}
    failed = -1
    for position, (number, size) in enumerate(made):
        try:
            if size:
                places[number] = allocator.malloc(size)
            else:
                allocator.free(places.pop(number))
        except OutOfMemory:
            failed = position
            break
    return {
        "failed": failed,
        "peak_allocated": allocator.peak_allocated,
        "peak_reserved": allocator.peak_reserved,
        "allocated": allocator.allocated,
        "reserved": allocator.reserved,
    }


def genuine(folder: Path, made: Sequence, cap: int | None, expandable: bool) -> dict[str, int]:
    """What PyTorch's allocator does."""
    text = "".join(f"a {number} {size}\n" if size else f"f {number}\n" for number, size in made)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{folder}:{folder / 'torch' / 'lib'}",
        "RATC_CAP": str(cap or 1 << 46),
        "PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:{expandable}",
    }
    done = subprocess.run([folder / "replay"], input=text, env=environment, capture_output=True, text=True, check=True)
    told: dict[str, int] = json.loads(done.stdout)
    return told


def main() -> int:
    """Exit status 1 where the two differ in anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where build.sh built")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--length", type=int, default=2000, help="allocations and frees of a sequence")
    parser.add_argument("--record", type=Path, help="write the genuine outcomes as cases")
    options = parser.parse_args()
    cases = []
    differing = ran_out = 0
    for seed in range(options.seeds):
        made = sequence(seed, options.length)
        for expandable in (False, True):
            whole = genuine(options.folder.absolute(), made, None, expandable)
            for share in SHARES:
                cap = int(whole["peak_reserved"] * share) if share else None
                truth = genuine(options.folder.absolute(), made, cap, expandable) if share else whole
                ours = replayed(made, cap, expandable)
                ran_out += truth["failed"] >= 0
                if ours != truth:
                    differing += 1
                    print(f"seed {seed}, expandable {expandable}, cap {cap}: {ours}, PyTorch {truth}")
                cases.append({"seed": seed, "expandable": expandable, "cap": cap, "outcome": truth})
    print(f"{len(cases)} replays, {ran_out} out of memory, {differing} differ")
    if options.record:
        sequences = {seed: sequence(seed, options.length) for seed in range(options.seeds)}
        recorded = {"torch": "2.9.1", "sequences": sequences, "cases": cases}
        options.record.write_text(json.dumps(recorded, separators=(",", ":")) + "\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
