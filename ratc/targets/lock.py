"""``lock.yaml``: every value of the run, with a comment if the spec does not say it. docs/reference/lock.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ratc import __version__
from ratc.plan import Value
from ratc.targets.artifact import Artifact, Place
from ratc.yaml.write import mapping

NAME = "lock.yaml"
VERSION = 1
#: The sections of a lock, in order; within one, values stand in the order in which they were derived.
SECTIONS = (
    "experiment_name",
    "description",
    "task_type",
    "seed",
    "debug",
    "entrypoint",
    "model",
    "training",
    "engine",
    "fsdp2",
    "data",
    "evaluation",
    "detection",
    "tasks",
    "compression",
    "logging",
    "checkpoint",
    "output_dir",
    "parallel",
    "elastic",
    "hardware",
    "memory",
    "health",
    "job",
)


def artifact(place: Place, target: str, values: Mapping[str, Value], others: Sequence[Artifact]) -> Artifact:
    """Return the lock of a plan's values, with the digests of its inputs and of the artifacts beside it."""
    tree: dict[str, Any] = {"lock_version": VERSION, "ratc_version": __version__, "target": target}
    comments = _fill(tree, values)
    tree["inputs"] = dict(sorted(place.inputs.items()))
    if place.own_code:
        tree["own_code"] = dict(sorted(place.own_code.items()))
    tree["artifacts"] = {other.path: other.digest for other in sorted(others, key=lambda other: other.path)}
    head = "".join(f"# {line}\n" for line in place.header)
    return Artifact(NAME, head + mapping(tree, comments), consumer="yaml")


def point(name: str, values: Mapping[str, Value], others: Sequence[Artifact]) -> Artifact:
    """Return the lock of one point of an array: its values over those of the shared lock, two folders up."""
    folder = f"points/{name}"
    tree: dict[str, Any] = {"lock_version": VERSION, "shared": f"../../{NAME}", "point": name}
    comments = _fill(tree, values)
    if others:
        tree["artifacts"] = {other.path.removeprefix(f"{folder}/"): other.digest for other in others}
    return Artifact(f"{folder}/{NAME}", mapping(tree, comments), consumer="yaml")


def _fill(tree: dict[str, Any], values: Mapping[str, Value]) -> dict[str, str]:
    """Put the values into the tree, section by section; returns the comments by path."""
    comments = {}
    by_section: dict[str, list[tuple[str, Value]]] = {section: [] for section in SECTIONS}
    for path, value in values.items():
        section = path.partition(".")[0]
        if section in by_section:
            by_section[section].append((path, value))
    for found in by_section.values():
        for path, value in found:
            _put(tree, path, value.value)
            comments[path] = _why(value)
    return comments


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[key] = value


def _why(value: Value) -> str:
    """Return the reason of a derived value, the layer of a value from outside the spec, "" for other values."""
    return value.reason if value.origin in ("derived", "hardware", "cluster", "layer") else ""
