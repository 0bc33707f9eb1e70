"""``study.yaml``: what a study's array is of, for its reviewer and for `ratc tune --collect`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ratc.diagnostics import Diagnostic
from ratc.redact import redact
from ratc.sweep import Point
from ratc.targets.artifact import Artifact, Place
from ratc.tuning.points import Study
from ratc.yaml_text import mapping

NAME = "study.yaml"


def artifact(place: Place, study: Study, trials: Sequence[str], left: Sequence[tuple[Point, Diagnostic]]) -> Artifact:
    """The file: how trials are judged, the search space as it was read, and the points that were left out, with why."""
    tree: dict[str, Any] = {
        "metric": study.metric,
        "larger_is_better": study.larger_is_better,
        "search_space": {entry.path: redact(entry.text) for entry in study.space},
        "trials": len(trials),
        "left_out": {point.name: redact(f"{point.text}: {why.message} ({why.code})") for point, why in left},
    }
    head = "".join(f"# {line}\n" for line in place.header)
    return Artifact(NAME, head + mapping(tree, {}), consumer="yaml")
