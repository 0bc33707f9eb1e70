"""Explain the gap between a recorded step and its prediction: `python benchmarks/memory/gap.py EVENTS.json.xz`.

EVENTS is a stream that `gpu.py --events` records (benchmarks/memory/data/*/events). The allocations of its last step,
or of the part that --part names, are aligned, phase by phase, with those that the trace predicts; DeepSpeed's streams
mark no phases, so that their steps are aligned as a whole. Printed are the peaks of both, the first difference,
the largest ones by phase, module and frame, and blocks that both have but that live for a different time at the peak.
"""

from __future__ import annotations

import argparse
import difflib
import json
import lzma
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import replay

from ratc.memory.allocator import rounded
from ratc.memory.scratch import LARGEST
from ratc.memory.trace import Program
from ratc.own_code import trust

MIB = 1 << 20
#: Sequences longer than this on both sides are compared by sizes and counts alone: aligning them takes minutes.
LONGEST = 6000


class BadEvents(ValueError):
    """A stream that is not what `gpu.py --events` writes; the message says what is wrong."""


@dataclass(frozen=True)
class Event:
    """An allocation or a free of ``bytes_`` (as requested); ``block`` is unique; ``place`` says whose it is."""

    allocates: bool
    bytes_: int
    block: int
    place: str


@dataclass
class Phase:
    """The events of a phase of the last step; ``live`` are the bytes alive before it, rounded as allocated."""

    name: str
    live: int
    events: list[Event] = field(default_factory=list)

    def peak(self) -> tuple[int, int]:
        """Return the most bytes alive in the phase, and the index of the event that reaches it (-1: before all)."""
        live = best = self.live
        at = -1
        for index, event in enumerate(self.events):
            live += rounded(event.bytes_) if event.allocates else -rounded(event.bytes_)
            if live > best:
                best, at = live, index
        return best, at


def read(path: Path) -> dict[str, Any]:
    """Return a recorded stream. Raises BadEvents for a file that cannot be read or is damaged."""
    try:
        raw = path.read_bytes()
        data = json.loads(lzma.decompress(raw) if path.suffix == ".xz" else raw)
    except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
        raise BadEvents(f"{path}: {error}") from error
    wanted: dict[str, type] = {
        "events": list, "frames": list, "marks": list, "request": dict, "micro_batch": int, "found": dict
    }  # fmt: skip
    given = data if isinstance(data, dict) else {}
    missing = [name for name, kind in wanted.items() if not isinstance(given.get(name), kind)]
    if missing:
        raise BadEvents(f"{path}: no {', '.join(sorted(missing))}")
    if type(given["micro_batch"]) is not int or not 1 <= given["micro_batch"] <= LARGEST:
        raise BadEvents(f"{path}: a micro-batch of {given['micro_batch']}")
    if not all(isinstance(frame, str) for frame in given["frames"]):
        raise BadEvents(f"{path}: frames that are no text")
    peaks = [given["found"].get(f"peak_{kind}_bytes") for kind in ("allocated", "reserved")]
    if not all(type(peak) is int and 0 < peak <= LARGEST for peak in peaks):
        raise BadEvents(f"{path}: peaks of {peaks[0]!r:.20} and {peaks[1]!r:.20} bytes in `found`")
    return given


def recorded(data: dict[str, Any], part: str = "last") -> list[Phase]:
    """Return the phases of a part of a recorded run: its "build", its "first" step or its "last" one.

    Phases are told apart in the last step, if they are marked. Raises BadEvents if events and marks contradict each
    other.
    """
    try:
        marks = [(str(name), int(made) + int(freed)) for name, made, freed in data["marks"]]
    except (TypeError, ValueError, OverflowError) as error:
        raise BadEvents(f"marks: {error}") from error
    starts = [index for index, (name, _) in enumerate(marks) if name.startswith("step ")]
    if not starts:
        raise BadEvents("no step is marked")
    begin = starts[0 if part == "first" else -1]
    ends = [index for index, (name, _) in enumerate(marks) if index > begin and (name == "end" or index in starts)]
    following = ends[0] if ends else len(marks)
    first = marks[begin][1]
    end: float = marks[following][1] if following < len(marks) else math.inf
    if part == "build":
        first, end = 0, marks[starts[0]][1]
    wanted = dict(reversed([(at, name) for name, at in marks[begin:following] if at > first]))
    if part != "last":
        wanted = {}
    phases = [Phase("build" if part == "build" else "input" if wanted else "step", 0)]
    alive: dict[int, tuple[int, int, str]] = {}  # address -> block, bytes, place
    live = done = blocks = 0
    for number, event in enumerate(data["events"]):
        try:
            action, size, address, frame = event
            if action not in ("a", "f"):
                continue
            if type(size) is not int or not 0 < size <= LARGEST:
                raise ValueError(f"{size} bytes")
            if action == "a" and frame < 0:
                raise ValueError(f"frame {frame}")
            if done in wanted and first < done < end:
                phases.append(Phase(wanted.pop(done), live))
            elif done == first and phases[0].live == 0:
                phases[0].live = live
            done += 1
            if action == "a":
                if address in alive:
                    raise ValueError("allocated twice")
                alive[address] = (blocks, size, data["frames"][frame])
                blocks += 1
            block, size, place = alive[address] if action == "a" else alive.pop(address)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BadEvents(f"event {number}: {str(event)[:60]}: {type(error).__name__} {error}") from error
        live += rounded(size) if action == "a" else -rounded(size)
        if first < done <= end:
            phases[-1].events.append(Event(action == "a", size, block, place))
    if done < marks[-1][1]:
        raise BadEvents(f"{done} events, and marks up to {marks[-1][1]}: the stream is cut off")
    return phases


def predicted(program: Program, micro_batch: int, part: str = "last", phased: bool = True) -> list[Phase]:
    """Return the build, the first traced step or the last one, whose phases are told apart if ``phased``."""
    sizes = program.sizes(micro_batch)
    marks = dict(program.marks) if phased else {}
    begin, end = {
        "build": (0, program.first),
        "first": (program.first, program.start),
        "last": (program.start, len(program.ops)),
    }[part]
    phases: list[Phase] = []
    live = 0
    for index, op in enumerate(program.ops[:end]):
        block = op if op >= 0 else ~op
        if index == begin:
            phases.append(Phase("build" if part == "build" else "input" if phased else "step", live))
        if phases and index in marks and marks[index] != phases[-1].name:
            phases.append(Phase(marks[index], live))
        live += rounded(sizes[block]) if op >= 0 else -rounded(sizes[block])
        if phases and sizes[block]:
            place = f"{program.modules[program.module[block]] or '-'} ({program.kinds[program.kind[block]]})"
            phases[-1].events.append(Event(op >= 0, sizes[block], block, place))
    return phases


def pair(one: Sequence[Event], other: Sequence[Event]) -> list[tuple[Event | None, Event | None]]:
    """Align two sequences of allocations by their sizes, to 3 %; what only one side has stands alone."""
    left, right = [_near(event.bytes_) for event in one], [_near(event.bytes_) for event in other]
    if min(len(left), len(right)) > LONGEST:
        return _by_size(one, other)
    found: list[tuple[Event | None, Event | None]] = []
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            found += zip(one[a:b], other[c:d], strict=True)
        else:
            found += [(event, None) for event in one[a:b]]
            found += [(None, event) for event in other[c:d]]
    return found


def _near(size: int) -> int:
    """The same number for sizes that differ by less than some 3 %: workspaces are aligned as cuDNN likes."""
    return rounded(size) if size < MIB else round(math.log(size) * 32) << 40


def _by_size(one: Sequence[Event], other: Sequence[Event]) -> list[tuple[Event | None, Event | None]]:
    waiting: dict[int, list[Event]] = defaultdict(list)
    for event in reversed(other):
        waiting[_near(event.bytes_)].append(event)
    found: list[tuple[Event | None, Event | None]] = []
    for event in one:
        found.append((event, waiting[_near(event.bytes_)].pop() if waiting[_near(event.bytes_)] else None))
    return found + [(None, event) for left in waiting.values() for event in left]


def alive_at(phases: Sequence[Phase], name: str, index: int) -> dict[int, Event]:
    """Return the blocks of the last step that are alive after an event of a phase, by block."""
    alive: dict[int, Event] = {}
    for phase in phases:
        for number, event in enumerate(phase.events):
            if event.allocates:
                alive[event.block] = event
            else:
                alive.pop(event.block, None)
            if phase.name == name and number >= index:
                return alive
        if phase.name == name:
            return alive
    return alive


def compare(measured: list[Phase], traced: list[Phase], most: int) -> list[str]:
    """Return the report's lines."""
    lines = ["phase        measured MiB   predicted MiB   difference"]
    by_name = {phase.name: phase for phase in traced}
    for phase in measured:
        peak, other = phase.peak()[0] / MIB, by_name.get(phase.name)
        if other is None:  # the trace allocates nothing in it
            lines.append(f"{phase.name:12} {peak:12.1f}   {'-':>13}   {'-':>10}")
        else:
            want = other.peak()[0] / MIB
            lines.append(f"{phase.name:12} {peak:12.1f}   {want:13.1f}   {want - peak:+10.1f}")
    start = measured[0].live - traced[0].live
    lines.append(f"before the step {start / MIB:+.1f} MiB more are alive than predicted")
    matched: dict[int, int] = {}  # the measured block -> the traced one
    first = ""
    single: Counter[tuple[str, str, str, int]] = Counter()
    for phase in measured:
        other = by_name.get(phase.name, Phase(phase.name, 0))
        made = [event for event in phase.events if event.allocates]
        expected = [event for event in other.events if event.allocates]
        for number, (one, two) in enumerate(pair(made, expected)):
            if one and two:
                matched[one.block] = two.block
                continue
            event = one or two
            assert event is not None
            side = "measured only" if one else "predicted only"
            if not first:
                first = f"first difference: {phase.name}, allocation {number}: {side}, {_size(event)}, {event.place}"
            single[side, phase.name, event.place, event.bytes_] += 1
    lines += ["", first or "no difference: every allocation of the step is predicted", ""]
    if single:
        lines.append("largest differences (times, size, where)")
    for (side, name, place, size), times in sorted(single.items(), key=lambda item: -item[0][3] * min(item[1], 3))[
        :most
    ]:
        lines.append(f"  {side:14} {name:10} {times:5} x {size / MIB:10.3f} MiB  {place}")
    return lines + _lifetimes(measured, traced, matched, most)


def _size(event: Event) -> str:
    return f"{event.bytes_} bytes"


def _lifetimes(measured: list[Phase], traced: list[Phase], matched: dict[int, int], most: int) -> list[str]:
    """What is alive at the measured peak and not at the predicted peak of the same phase, and the other way round."""
    top = max(measured, key=lambda phase: phase.peak()[0])
    other = next((phase for phase in traced if phase.name == top.name), None)
    if other is None:
        return ["", f"the peak is in {top.name}, a phase that the trace does not have"]
    here = alive_at(measured, top.name, top.peak()[1])
    there = alive_at(traced, top.name, other.peak()[1])
    back = {two: one for one, two in matched.items()}
    more = Counter((event.place, event.bytes_) for block, event in here.items() if matched.get(block) not in there)
    less = Counter((event.place, event.bytes_) for block, event in there.items() if back.get(block) not in here)
    lines = ["", f"the peak is in {top.name}; alive there, blocks of this step:"]
    for side, found in (("measured only", more), ("predicted only", less)):
        total = sum(rounded(size) * times for (_, size), times in found.items())
        lines.append(f"  {side}: {total / MIB:.1f} MiB")
        for (place, size), times in sorted(found.items(), key=lambda item: -item[0][1] * item[1])[:most]:
            lines.append(f"    {times:5} x {size / MIB:10.3f} MiB  {place}")
    return lines


def main() -> int:
    """Exit status 2 for a stream that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=Path, nargs="+", metavar="EVENTS")
    parser.add_argument("--part", choices=("build", "first", "last"), default="last", help="what is aligned")
    parser.add_argument("--most", type=int, default=12, metavar="N", help="rows of each list (default 12)")
    args = parser.parse_args()
    trust.begin(True, False)  # the models are of this folder
    for path in args.events:
        try:
            data = read(path)
            measured = recorded(data, args.part)
            row = {"name": data.get("name", path.name), "zero_stage": None, **data}
            prediction = replay.predictor(row)
        except (BadEvents, RuntimeError) as error:
            _refuse(str(error))
        except (KeyError, TypeError) as error:
            _refuse(f"{path}: the request has no {error}")
        found = prediction.unbounded(data["micro_batch"])
        print(f"{row['name']}, micro-batch {data['micro_batch']}")
        for kind in ("allocated", "reserved"):
            have, want = data["found"][f"peak_{kind}_bytes"], getattr(found, f"peak_{kind}_bytes")
            print(f"peak {kind}: measured {have / MIB:.1f} MiB, predicted {want / MIB:.1f} MiB, {want / have - 1:+.2%}")
        phased = len(measured) > 1
        traced = predicted(prediction.program, data["micro_batch"], args.part, phased)
        print("\n".join(compare(measured, traced, args.most)), end="\n\n")
    return 0


def _refuse(message: str) -> NoReturn:
    print(f"gap.py: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
