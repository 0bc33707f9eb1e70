"""The checks of a run, a line each in `health.jsonl`, and the ranks that the script leaves out, in `UNHEALTHY`."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from ratc_runtime.config.yaml_file import open_regular
from ratc_runtime.output import atomic

FILE = "health.jsonl"
#: A rank of the job a line. The script takes numbers alone from it, and the names of nodes from the scheduler.
UNHEALTHY = "UNHEALTHY"
#: Checks that are kept, and bytes that are read.
KEPT, MOST_BYTES = 200, 2**24


def read(output_dir: Path) -> list[dict[str, Any]]:
    """Return the recorded checks. Lines that are not records are skipped."""
    found: list[dict[str, Any]] = []
    try:
        with open_regular(output_dir / FILE) as file:
            lines = file.read(MOST_BYTES).splitlines()
    except OSError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("excluded"), list):
                found.append(entry)
    return found


def add(output_dir: Path, entry: dict[str, Any]) -> None:
    """Record a check. Raises OSError."""
    entries = [*read(output_dir), entry][-KEPT:]
    atomic.write_text(output_dir / FILE, "".join(json.dumps(one) + "\n" for one in entries), sync=True)


def excluded_by(output_dir: Path, job: str) -> set[str]:
    """Return the names of the nodes that earlier starts of a job have left out."""
    return {str(name) for entry in read(output_dir) if entry.get("job") == job for name in entry["excluded"]}


def summary(output_dir: Path) -> dict[str, Any] | None:
    """Return the entry for results.json: the checks, and how often each node was left out; None without a check."""
    entries = read(output_dir)
    if not entries:
        return None
    counts = Counter(str(name) for entry in entries for name in entry["excluded"])
    last = {key: entries[-1].get(key) for key in ("time", "nodes", "seconds", "warnings")}
    return {"checks": len(entries), "excluded": dict(sorted(counts.items())), "last": last}


def exclude(output_dir: Path, ranks: list[int]) -> None:
    """Write the ranks whose nodes the batch script must leave out. Raises OSError."""
    atomic.write_text(output_dir / UNHEALTHY, "".join(f"{rank}\n" for rank in ranks), sync=True)
