"""Summarizes a submission in a few lines, from the lock that the job will train from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ratc.units import duration
from ratc.yaml.parse import parse

#: Differences that are shown; a lock has a hundred values.
_MOST = 8
#: Paths that can differ for the same run.
_NOT_COMPARED = ("artifacts.", "inputs.", "ratc_version")


def values(name: str, text: str) -> dict[str, Any]:
    """The values of a lock's text by their paths; lists are values. Empty if it cannot be read."""
    document, _ = parse(name, text.encode())
    return dict(_flat("", document.root.data())) if document else {}


def _flat(path: str, data: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping) and data:
        for key, child in data.items():
            yield from _flat(f"{path}.{key}" if path else str(key), child)
    else:
        yield path, data


def lines(lock: Mapping[str, Any], script: str, points: int) -> list[str]:
    """Return the job's request, one line per item."""
    nodes, processes = lock["parallel.nodes"], lock["parallel.processes_per_node"]
    device = lock.get("hardware.card") or ("the CPU" if lock.get("hardware.device") == "cpu" else "GPUs")
    several = "s, each" if nodes > 1 else ""
    what = f"{nodes} node{several} with {processes} process{'es' if processes > 1 else ''} on {device}"
    walltime = lock.get("job.walltime_seconds")
    rows = [
        ("experiment", lock["experiment_name"]),
        ("job", lock.get("job.name") if lock.get("job.name") != lock["experiment_name"] else None),
        ("asks for", what),
        ("partition", lock.get("job.partition")),
        ("account", lock.get("job.account")),
        ("qos", lock.get("job.qos")),
        ("walltime", duration(walltime) if walltime else None),
        ("array", f"{points} tasks" if points else None),
        ("script", script),
    ]
    return [f"{name + ':':<12}{value}" for name, value in rows if value is not None]


def differences(former: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the changes since a former submission: ``path: old -> new``, in the lock's order."""
    paths = [path for path in {**now, **former} if not path.startswith(_NOT_COMPARED)]
    changed = [path for path in paths if former.get(path) != now.get(path)]
    shown = [f"{path}: {_text(former, path)} -> {_text(now, path)}" for path in changed[:_MOST]]
    return shown + ([f"and {len(changed) - _MOST} more"] if len(changed) > _MOST else [])


def _text(lock: Mapping[str, Any], path: str) -> str:
    return str(lock[path]) if path in lock else "nothing"
