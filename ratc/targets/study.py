"""Beside the job of a study: ``study.yaml`` for its reviewer, ``facts.yaml`` for the trials that Ray starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ratc.diagnostics import Diagnostic
from ratc.plan import Plan
from ratc.secrets.redact import redact
from ratc.sweep import Point
from ratc.targets.artifact import Artifact, Place
from ratc.tuning.points import Study
from ratc.yaml.write import mapping

NAME, FACTS = "study.yaml", "facts.yaml"


def artifact(
    place: Place,
    study: Study,
    trials: int | Mapping[str, str],
    left: Sequence[tuple[Point, Diagnostic]],
    ray: Mapping[str, Any] | None = None,
) -> Artifact:
    """Return ``study.yaml``: the metric and the choice of trials, the search space as it was read, and the points left
    out, with reasons. ``trials`` is their number, or their values by name.
    """
    tree: dict[str, Any] = {
        "metric": study.metric,
        "larger_is_better": study.larger_is_better,
        **(ray or {}),
        "search_space": {entry.path: redact(entry.text) for entry in study.space},
        "trials": trials if isinstance(trials, int) else {name: redact(text) for name, text in trials.items()},
        "left_out": {point.name: redact(f"{point.text}: {why.message} ({why.code})") for point, why in left},
    }
    head = "".join(f"# {line}\n" for line in place.header)
    return Artifact(NAME, head + mapping(tree, {}), consumer="yaml")


def facts(plan: Plan, place: Place, cpus: int) -> Artifact:
    """Return the facts of the job's share of one node: trials are compiled for it while the job runs."""
    values, known = plan.values, plan.facts
    cuda = values["hardware.device"].value == "cuda"
    tree: dict[str, Any] = {"gpus_per_node": values["parallel.processes_per_node"].value if cuda else 0}
    if cuda:
        tree["gpu"] = values["hardware.card"].value
        tree["gpu_memory_mib"] = values["hardware.memory_bytes"].value // 2**20
        tree["compute_capability"] = values["hardware.compute_capability"].value
    tree["cpus"] = cpus
    memory = values["job.memory_bytes_per_node"].value or known["memory_bytes"].value
    if memory:
        tree["memory"] = f"{memory // 2**20}MiB"
    head = "".join(f"# {line}\n" for line in place.header)
    return Artifact(FACTS, head + mapping(tree, {}), consumer="yaml")
