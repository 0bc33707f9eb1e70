"""A study -> its trials, each a point of an array: every combination of choices, or an even spread over all keys.

The spread is the additive recurrence R of M. Roberts ("The Unreasonable Effectiveness of Quasirandom Sequences", 2018):
trial n has frac(s_k + n * g^-(k + 1)) along key k, g the root of x^(d + 1) = x + 1 for d keys. It fills a space more
evenly than random numbers, needs none, and its first trials stay the same when more are asked for. The seed shifts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from math import prod
from typing import Any

from ratc.catalog import tasks
from ratc.diagnostics import Diagnostic, Severity, Span, did_you_mean
from ratc.sweep import MOST_POINTS, Point
from ratc.tuning.proposals import standing_for
from ratc.tuning.space import Choices, Range, number_at, point_of, read
from ratc.yaml.parse import Document, Node

#: Trials if a spec has ranges and gives no number. Chosen, not measured.
USUAL_TRIALS = 16
#: Points of the spread that are tried for each wanted trial, at most, since some repeat.
_PATIENCE = 20


@dataclass(frozen=True, slots=True)
class Study:
    """A study: its search ``space``, and the number of its ``trials``; ``whole`` if these are all combinations.

    ``points`` are the trials. If the study is ``adaptive``, they are proposed while it runs, and ``points`` only
    represent them. With ``halving`` (grace epochs, reduction factor) poor trials end early.
    """

    metric: str
    larger_is_better: bool
    space: tuple[Choices | Range, ...]
    points: tuple[Point, ...]
    max_parallel: int | None
    span: Span | None
    whole: bool
    trials: int
    backend: str = "array"
    adaptive: bool = False
    halving: tuple[int, int] | None = None
    seed: int = 0
    budget_seconds: float | None = None


def study(document: Document, schema: dict[str, Any]) -> tuple[Study | None, tuple[Diagnostic, ...]]:
    """The study of a spec that the schema accepts; None without one.

    Codes: R224, R331, R332, R333, R336, R337, R342.
    """
    section = document.root.find(("tuning",))
    if section is None or not isinstance(section.value, dict):
        return None, ()
    where = section.key_span or section.span
    if _value(document, "sweep") is not None:
        message = "a spec has either `sweep` or `tuning`, not both"
        return None, (Diagnostic("R224", message, where),)
    space = section.find(("search_space",))
    if space is None or space.value is None:
        return None, (Diagnostic("R336", "`tuning` has no search space", where),)
    entries, found = read(space, schema, document.root)
    metric, better, wrong = _metric(document, section)
    found += (*wrong, *_rays_alone(section))
    if found:
        return None, tuple(found)
    trials = _value(document, "tuning.trials")
    combinations = prod(len(entry.nodes) for entry in entries if isinstance(entry, Choices))
    grid = all(isinstance(entry, Choices) for entry in entries) and (trials is None or trials >= combinations)
    wanted = combinations if grid else trials or USUAL_TRIALS
    if wanted > MOST_POINTS:
        message = f"a study of {wanted:,} trials; the limit is {MOST_POINTS:,}"
        return None, (Diagnostic("R333", message, where),)
    seed = _value(document, "tuning.seed")
    seed = seed if seed is not None else _value(document, "seed") or 0
    backend = _value(document, "tuning.backend") or "ray"
    adaptive = _value(document, "tuning.search") == "tpe"
    if adaptive:
        points = standing_for(entries)
    else:
        drawn = _grid(entries) if grid else _low_discrepancy(entries, wanted, seed)
        points = tuple(point_of(index, nodes) for index, nodes in enumerate(drawn, 1))
        wanted = len(points)
    halving = (_value(document, "tuning.grace_epochs") or 1, _value(document, "tuning.reduction_factor") or 4)
    hours = _value(document, "tuning.budget_hours")
    made = Study(
        metric=metric,
        larger_is_better=better,
        space=tuple(entries),
        points=points,
        max_parallel=_value(document, "tuning.max_parallel"),
        span=where,
        whole=grid,
        trials=wanted,
        backend=backend,
        adaptive=adaptive,
        halving=halving if backend == "ray" and _value(document, "tuning.early_stopping") != "none" else None,
        seed=seed,
        budget_seconds=None if hours is None else hours * 3600,
    )
    return made, tuple(_alike(document, entries))


def _alike(document: Document, entries: Sequence[Choices | Range]) -> Iterator[Diagnostic]:
    """Yield a warning if the micro-batch varies under a global batch that the spec gives. Code: R360."""
    space = {entry.path: entry for entry in entries}
    batch, fixed = space.get("training.batch_size"), _value(document, "training.target_batch_size")
    if batch is None or (fixed is None and "training.target_batch_size" not in space):
        return
    node = batch.nodes[0] if isinstance(batch, Choices) else batch.node
    if "training.target_batch_size" in space:
        message = (
            "the study varies `batch_size` as well as `target_batch_size`: `batch_size` changes only the accumulation"
        )
        helps = ("remove `training.batch_size` from the search space",)
    else:
        message = f"the study varies `batch_size`, and `target_batch_size` stays {fixed}: only the accumulation differs"
        helps = ("vary `training.target_batch_size` to try other global batches",)
    notes = [
        "all trials learn the same, except for rounding and the statistics of batch norm, which are computed "
        "per micro-batch"
    ]
    if len(entries) > 1:
        notes.append("trials that differ in nothing else give the same score")
    yield Diagnostic("R360", message, node.span, tuple(notes), helps, Severity.WARNING)


#: Keys of a section `tuning` that need Ray, with the value that does; any value if that is None.
_RAYS: dict[str, str | None] = {
    "search": "tpe",
    "early_stopping": "asha",
    "gpus_per_trial": None,
    "cpus_per_trial": None,
}


def _rays_alone(section: Node) -> Iterator[Diagnostic]:
    """Yield a finding for each key that needs Ray, if the backend is `array`. Code: R342."""
    backend = section.find(("backend",))
    if backend is None or backend.value != "array":
        return
    for key, asked in _RAYS.items():
        node = section.find((key,))
        if node is None or node.value is None or (asked is not None and node.value != asked):
            continue
        helps = ["use `backend: ray`"]
        if asked is None:
            helps.append("with `backend: array`, `resources` describes the resources of each trial")
        message = f"`{key}{f': {asked}' if asked else ''}` needs `backend: ray`"
        yield Diagnostic("R342", message, node.span, helps=tuple(helps))


def _value(document: Document, path: str) -> Any:
    node = document.root.find(tuple(path.split(".")))
    return None if node is None else node.data()


def _metric(document: Document, section: Node) -> tuple[str, bool, list[Diagnostic]]:
    """Return the metric of a trial, and whether larger is better. Code: R337."""
    task = _value(document, "task_type") or "segmentation"
    several = {name: str(node.data().get("task_type")) for name, node in _tasks(document)}
    known = tasks.metrics(task, several)
    named = section.find(("metric",))
    metric = named.data() if named is not None else None
    metric = metric or _value(document, "checkpoint.best_metric") or known[0]
    mode = section.find(("mode",))
    better = tasks.larger_is_better(metric)
    if mode is not None and mode.value in ("min", "max"):
        better = mode.value == "max"
    if task != "custom" and metric not in known:
        span = named.span if named is not None else section.span
        message = f"a {task} task has no score `{metric}`"
        return (
            metric,
            better,
            [Diagnostic("R337", message, span, helps=did_you_mean(metric, known) or (f"use {', '.join(known)}",))],
        )
    return metric, better, []


def _tasks(document: Document) -> list[tuple[str, Node]]:
    node = document.root.find(("tasks",))
    return list(node.value.items()) if node is not None and isinstance(node.value, dict) else []


def _grid(entries: list[Choices | Range]) -> Iterator[tuple[tuple[str, Node], ...]]:
    choices = [entry for entry in entries if isinstance(entry, Choices)]
    for nodes in product(*(entry.nodes for entry in choices)):
        yield tuple((entry.path, node) for entry, node in zip(choices, nodes, strict=True))


def _low_discrepancy(entries: list[Choices | Range], wanted: int, seed: int) -> Iterator[tuple[tuple[str, Node], ...]]:
    """Yield ``wanted`` different combinations: with whole numbers and choices, the sequence repeats some."""
    seen: set[str] = set()
    steps = _steps(len(entries))
    starts = [_start(seed, entry.path) for entry in entries]
    for number in range(1, wanted * _PATIENCE + 1):
        shares = [(start + number * step) % 1.0 for start, step in zip(starts, steps, strict=True)]
        nodes = tuple((entry.path, _at(entry, share)) for entry, share in zip(entries, shares, strict=True))
        text = repr([node.data() for _, node in nodes])
        if text not in seen:
            seen.add(text)
            yield nodes
            if len(seen) == wanted:
                return


def _steps(keys: int) -> list[float]:
    root = 2.0
    for _ in range(60):  # converges to the last bit
        root = (1 + root) ** (1 / (keys + 1))
    return [root ** -(key + 1) for key in range(keys)]


def _start(seed: int, path: str) -> float:
    return int.from_bytes(sha256(f"{seed} {path}".encode()).digest()[:6], "big") / 2**48


def _at(entry: Choices | Range, share: float) -> Node:
    """Return the value at a share in [0, 1) of an entry."""
    return entry.nodes[int(share * len(entry.nodes))] if isinstance(entry, Choices) else number_at(entry, share)
