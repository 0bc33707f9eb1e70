"""The workspaces of convolutions in recorded steps, and how well they are known without them: `python
benchmarks/memory/recorded.py` prints a table.

Every committed stream of a model with convolutions is aligned with its trace, which knows each pass; what the step
allocated and freed right after a pass's result was its workspace. `workspaces.py --write` makes rules and look-ups of
them. The table leaves each model's own measurements out, puts what the others and the survey say into its recorded
stream, and replays that: what the allocator reserves, and the least cap under which the step runs. "unmeasured" is the
largest workspace like which none were measured then, as a share of what was allocated, as in `ratc.memory.margin`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gap
import replay

from ratc.memory.convolutions import Convolution, Direction, described, unmeasured, workspace
from ratc.memory.estimate import replay as replayed
from ratc.memory.trace import Program

#: Streams of two allocator streams, of steps that are not the traced one, or with nothing new.
LEFT_OUT = ("zero", "compiled", "expandable", "accumulating", "checkpointed")


@dataclass(frozen=True)
class Recorded:
    """A measured pass of a step, and whose it is."""

    model: str
    conv: Convolution
    direction: Direction
    bytes_: int


def streams() -> Iterator[Path]:
    """Yield the committed streams whose steps can be aligned, one of each case."""
    seen = set()
    for folder in replay.folders():
        for file in sorted(folder.glob("events/*.json.xz")):
            if file.name not in seen and not any(part in file.name for part in LEFT_OUT):
                seen.add(file.name)
                yield file


def model_of(name: str) -> str:
    """Return the model in a case's name: "resnet-18, bf16, adam" is of "resnet-18"."""
    return name.partition(",")[0]


def passes(data: Mapping[str, Any], row: Mapping[str, Any]) -> list[Recorded]:
    """Return the passes of the last step of a recorded stream. Raises BadEvents, or RuntimeError without a trace."""
    program = replay.predictor(dict(row)).program
    if not any(scratch.rule == "convolution" for scratch in program.scratch.values()):
        return []
    micro_batch = int(data["micro_batch"])
    phases = {phase.name: phase.events for phase in gap.recorded(dict(data))}
    found = []
    for phase in gap.predicted(program, micro_batch):
        measured = phases.get(phase.name, [])
        follows = workspaces(measured)
        made = [event for event in measured if event.allocates and event.block not in follows.values()]
        expected = [event for event in phase.events if event.allocates and event.block not in program.optional]
        partner = {two.block: one.block for one, two in gap.pair(made, expected) if one and two}
        for result, number in convolved(program):
            if result in partner:
                scratch = program.scratch[number]
                conv, direction = described(scratch.numbers(micro_batch))
                block = follows.get(partner[result])
                size = next((event.bytes_ for event in measured if event.block == block), 0)
                found.append(Recorded(model_of(data["name"]), conv, direction, size))
    return found


def workspaces(events: list[gap.Event]) -> dict[int, int]:
    """Return the blocks that are freed at once, by the block that was allocated right before them."""
    found = {}
    for result, block, freed in zip(events, events[1:], events[2:], strict=False):
        if result.allocates and block.allocates and not freed.allocates and freed.block == block.block:
            found[result.block] = block.block
    return found


def convolved(program: Program) -> Iterator[tuple[int, int]]:
    """Yield the results of the last step's passes, each with its workspace."""
    before = -1
    for op in program.ops[program.start :]:
        if op in program.optional:
            yield before, op
        if op >= 0:
            before = op


def changed(data: Mapping[str, Any], sizes: Mapping[int, int]) -> Program:
    """Return a recorded stream as a program; blocks that are freed at once and have one of ``sizes`` get another."""
    events = [event for event in data["events"] if event[0] in ("a", "f")]
    ops: list[int] = []
    bytes_: list[float] = []
    alive: dict[int, int] = {}
    optional = set()
    for (action, size, address, _), following in zip(events, [*events[1:], ["", 0, -1, 0]], strict=True):
        if action == "f":
            if address in alive:
                ops.append(~alive.pop(address))
            continue
        alive[address] = len(bytes_)
        if following[0] == "f" and following[2] == address and size in sizes:
            size = sizes[size]
            optional.add(len(bytes_))
        ops.append(len(bytes_))
        bytes_.append(size)
    columns = [0] * len(bytes_)
    return Program(
        ops, bytes_, [0.0] * len(bytes_), columns, columns, ("",), ("",), len(ops), optional=frozenset(optional)
    )


def least_cap(program: Program) -> int:
    """Return the smallest cap under which a stream runs, to 0.05 %."""
    high = replayed(program, 1).peak_reserved_bytes
    low = high // 2
    while high - low > high // 2000:
        middle = (low + high) // 2
        low, high = (low, middle) if replayed(program, 1, middle).fits else (middle, high)
    return high


def main() -> int:
    """Print the table."""
    import workspaces as survey

    everything = survey.recorded_passes()
    print("| case | images | unmeasured | reserved, MiB | others say | least cap, MiB | others say |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for file in streams():
        data = gap.read(file)
        found = passes(data, {"zero_stage": None, **data})
        if not found:
            continue
        model = model_of(data["name"])
        known = survey.fitted([one for one in everything if one.model != model])
        own = {one.bytes_: one.bytes_ for one in found if one.bytes_}
        others = {one.bytes_: workspace(one.conv, one.direction, known=known) for one in found if one.bytes_}
        true, guess = changed(data, own), changed(data, others)
        reserved = replayed(true, 1).peak_reserved_bytes, replayed(guess, 1).peak_reserved_bytes
        caps = least_cap(true), least_cap(guess)
        cells = [f"{a >> 20:,} | {b / a - 1:+.1%}" for a, b in (reserved, caps)]
        strange = (
            unmeasured([(one.conv, one.direction) for one in found], known) / data["found"]["peak_allocated_bytes"]
        )
        print(f"| {data['name']} | {data['micro_batch']} | {strange:.1%} | {cells[0]} | {cells[1]} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
