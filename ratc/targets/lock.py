"""``lock.yaml``: every value of the run, concrete, with a comment where the spec does not say it. See docs/lock.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ratc import __version__
from ratc.plan import Plan, Value
from ratc.targets.artifact import Artifact, Place
from ratc.yaml_text import mapping

NAME = "lock.yaml"
VERSION = 1
#: The sections of a lock, in order; within one, values stand in the order in which they were derived.
SECTIONS = (
    "experiment_name",
    "description",
    "task_type",
    "seed",
    "debug",
    "model",
    "training",
    "engine",
    "data",
    "logging",
    "checkpoint",
    "output_dir",
    "parallel",
    "hardware",
    "memory",
)


def artifact(plan: Plan, place: Place, target: str, others: Sequence[Artifact]) -> Artifact:
    """The lock of a plan, naming the digests of its inputs and of the artifacts beside it."""
    tree: dict[str, Any] = {"lock_version": VERSION, "ratc_version": __version__, "target": target}
    comments = {}
    for section in SECTIONS:
        for path, value in plan.values.items():
            if path == section or path.startswith(f"{section}."):
                _put(tree, path, value.value)
                comments[path] = _why(value)
    tree["inputs"] = dict(sorted(place.inputs.items()))
    tree["artifacts"] = {other.path: other.digest for other in sorted(others, key=lambda other: other.path)}
    head = "".join(f"# {line}\n" for line in place.header)
    return Artifact(NAME, head + mapping(tree, comments), consumer="yaml")


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[key] = value


def _why(value: Value) -> str:
    """Reasons for what was worked out, the layer for what came from outside the spec, nothing for the rest."""
    return value.reason if value.origin in ("derived", "hardware", "layer") else ""
