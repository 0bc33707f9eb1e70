"""The allocator's own events of some steps, in the format of benchmarks/memory/data/*/events.

`events`: [action, bytes, address id, frame id], with actions a (allocate), f (free), s and S (segment allocated and
freed), o (out of memory). `frames`: the innermost Python frame, then the innermost one outside torch. `marks`: [phase,
allocations so far, frees so far].
"""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

ACTIONS = {"alloc": "a", "free_completed": "f", "segment_alloc": "s", "segment_free": "S", "oom": "o"}
#: Expandable segments map and unmap pages.
ACTIONS |= {"segment_map": "s", "segment_unmap": "S"}


class Recorder:
    """Records from its making on; `mark` names a phase."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, int, int]] = []
        torch.cuda.memory._record_memory_history(max_entries=4_000_000, stacks="python")

    def mark(self, phase: str) -> str:
        """Note the phase that begins, by the allocations and frees before it."""
        stats = torch.cuda.memory_stats()
        self.marks.append((phase, stats["allocation.all.allocated"], stats["allocation.all.freed"]))
        return phase

    def stop(self) -> dict[str, Any]:
        """Return `events`, `frames` and `marks`."""
        (trace, *_) = torch.cuda.memory._snapshot()["device_traces"]
        torch.cuda.memory._record_memory_history(enabled=None)
        return {**packed(trace), "marks": self.marks}


def packed(trace: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return `events` and `frames` of a device's trace as `torch.cuda.memory._snapshot` has it."""
    addresses: dict[int, int] = {}
    frames: dict[str, int] = {}
    events = []
    for entry in trace:
        action = ACTIONS.get(entry["action"])
        if action is None:
            continue
        place = -1
        if action == "a":
            place = frames.setdefault(_place(entry.get("frames") or ()), len(frames))
        address = addresses.setdefault(entry.get("addr", 0), len(addresses))
        events.append([action, entry["size"], address, place])
    return {"events": events, "frames": list(frames)}


def _place(frames: Iterable[dict[str, Any]]) -> str:
    told = [
        (frame["filename"], f"{os.path.basename(frame['filename'])}:{frame['line']}:{frame['name']}")
        for frame in frames
    ]
    outside = next((text for name, text in told if f"{os.sep}torch{os.sep}" not in name), told[-1][1] if told else "")
    return f"{told[0][1]} < {outside}" if told else ""


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a stream, compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(json.dumps(content, separators=(",", ":")).encode()))
