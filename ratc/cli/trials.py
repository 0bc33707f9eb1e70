"""Trials of a study: each compiled as a run of its own, and read from what its run has left."""

from __future__ import annotations

import argparse
import contextlib
import copy
import fcntl
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from ratc import layers
from ratc.cli import inputs
from ratc.cli.arrays import left_out as left_out_finding
from ratc.cli.compile import as_word, compile_spec
from ratc.cli.inputs import Loaded
from ratc.cli.points import resolve
from ratc.cli.telling import Telling
from ratc.diagnostics import Diagnostic, has_errors
from ratc.sweep import Point
from ratc.targets.array import Array
from ratc.targets.artifact import Place
from ratc.tuning import outcome
from ratc.tuning.outcome import Trial
from ratc.tuning.points import Study
from ratc.yaml_text import mapping

#: What the runtime keeps locked in an output folder while it trains there.
_OWNER = "owner.json"
#: Values that follow from the experiment's name, and stay those of the study.
_SHARED = ("logging.mlflow_experiment_name", "logging.wandb_project")


class Held(Exception):
    """Another process runs the study."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A trial that can run: its files in ``folder``, its results in ``output``, on ``gpus`` of the machine's.

    ``settings`` are the words behind `--set` that make it of the spec.
    """

    point: Point
    folder: str
    output: str
    gpus: int
    settings: tuple[str, ...]

    @property
    def lock_digest(self) -> str:
        """Of the lock, as the runtime notes it."""
        with open(os.path.join(self.folder, "lock.yaml"), "rb") as file:
            return sha256(file.read()).hexdigest()


def prepare(
    args: argparse.Namespace, loaded: Loaded, study: Study, write: bool
) -> tuple[list[Compiled], list[tuple[Point, Diagnostic]], tuple[Diagnostic, ...]]:
    """Resolve every trial, and where ``write`` compile it; those that cannot be are returned with the reason.

    All are looked at before a file is written. Codes: those of a spec, R338, R339.
    """
    assert loaded.settings is not None
    assert loaded.document is not None
    gathered, found = inputs.gather(args, loaded.settings, "local")
    if gathered is None:
        return [], [], found
    hardware, more = gathered.settled(loaded.settings)
    found += more
    if hardware is None:
        return [], [], found
    array, left = Array(Place(".", ".", "", "", {}), None, study.span), list[tuple[Point, Diagnostic]]()
    found += resolve(args, loaded.document, study.points, hardware, array, left)
    found += left_out_finding(study, left)
    if has_errors(found) or array.first is None:
        return [], left, found
    values = array.first.values
    base = os.path.normpath(os.path.join(loaded.folder, values.get_as(str, "output_dir")))
    gpus = values.get_as(int, "parallel.world_size") if values["hardware.device"].value == "cuda" else 0
    names = {entry.name for entry in array.entries}
    points = [point for point in study.points if point.name in names]
    # As the points of an array: a name and a folder of its own, and one place where all are tracked.
    shared = [f"{path}={as_word(values[path].value)}" for path in _SHARED]
    name, output = values["experiment_name"].value, values["output_dir"].value
    ready = [
        Compiled(
            point,
            os.path.join(base, "study", "trials", point.name),
            os.path.join(base, point.name),
            gpus,
            (
                *(f"{path}={as_word(node.data())}" for path, node in point.nodes),
                f"experiment_name={name}-{point.name}",
                f"output_dir={output}/{point.name}",
                *shared,
            ),
        )
        for point in points
    ]
    for one in ready if write else ():
        wrong = _compile(args, one, one.folder)
        if wrong:
            return [], left, (*found, *wrong)
    return ready, left, found


def _compile(args: argparse.Namespace, trial: Compiled, folder: str) -> tuple[Diagnostic, ...]:
    """Compile a trial for this machine, as `ratc compile` does with its values as `--set`."""
    own = copy.copy(args)
    own.assignments = [*args.assignments, *trial.settings]
    own.short_experiment_name = own.short_output_dir = None
    for path, _ in trial.point.nodes:
        for short, full in layers.SHORT_NAMES.items():
            if full == path:
                setattr(own, f"short_{short.replace('-', '_')}", None)
    own.output = folder
    telling = _Quiet()
    # What is written is said of the study as a whole.
    with contextlib.redirect_stderr(io.StringIO()):
        status, _ = compile_spec(own, "local", folder, check=False, telling=telling)
    return tuple(telling.kept) if status else ()


class _Quiet(Telling):
    def __init__(self) -> None:
        super().__init__("ratc tune", "json")

    @property
    def kept(self) -> list[Diagnostic]:
        """What would have been told."""
        return self._kept


def result(trial: Compiled, study: Study) -> Trial:
    """What a trial's output folder says of it."""
    values = {path: node.data() for path, node in trial.point.nodes}
    try:
        with open(os.path.join(trial.output, "results.json"), encoding="utf-8") as file:
            results = json.load(file)
    except (OSError, ValueError):
        return Trial(trial.point.name, values, outcome.FAILED if why(trial) else outcome.OPEN, why=why(trial))
    metric, epoch = outcome.judged(results, study.metric, study.larger_is_better)
    done = results.get("status") == "finished"
    seconds = results.get("wall_seconds")
    return Trial(trial.point.name, values, outcome.FINISHED if done else outcome.OPEN, metric, epoch, seconds)


def left_out(left: Sequence[tuple[Point, Diagnostic]]) -> list[Trial]:
    """The points that cannot run, as trials without a metric."""
    return [
        Trial(point.name, {path: node.data() for path, node in point.nodes}, outcome.LEFT_OUT, why=why.code)
        for point, why in left
    ]


def log_of(trial: Compiled) -> str:
    """Where what its script prints is kept."""
    return f"{trial.folder}.log"


def why(trial: Compiled, begun: int = 0) -> str:
    """The code of the last finding in a trial's log, from a place on; nothing where there is none."""
    try:
        with open(log_of(trial), "rb") as file:
            file.seek(begun)
            codes = re.findall(r"error\[(R\d{3})\]", file.read().decode(errors="replace"))
    except OSError:
        return ""
    return codes[-1] if codes else ""


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Keep other `ratc tune` out of a study; raises Held. The lock goes with the process, however it ends."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".running"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Held from None
        yield


def is_finished(trial: Compiled) -> bool:
    """Whether its own lock was trained to the end."""
    try:
        with open(os.path.join(trial.output, "results.json"), encoding="utf-8") as file:
            results = json.load(file)
    except (OSError, ValueError):
        return False
    return results.get("status") == "finished" and str(results.get("lock_sha256", "")).endswith(trial.lock_digest)


def is_held(trial: Compiled) -> bool:
    """Whether a process still trains in a trial's folder: one that outlived a `ratc tune` that was killed."""
    try:
        with open(os.path.join(trial.output, _OWNER), "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_UN)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def keep_best(args: argparse.Namespace, trial: Compiled, folder: str) -> tuple[Diagnostic, ...]:
    """Compile the best trial into a folder, with an overlay of its values beside: what to put into the spec.

    What this machine cannot run, a trial over several nodes, has the overlay alone; the reasons are returned.
    """
    os.makedirs(folder, exist_ok=True)
    found = _compile(args, trial, folder)
    tree: dict[str, object] = {}
    for path, node in trial.point.nodes:
        *parents, key = path.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})  # type: ignore[assignment]
        section[key] = node.data()
    head = f"# The values of {trial.point.name}, the best trial of its study.\n"
    with open(os.path.join(folder, "overlay.yaml"), "w", encoding="utf-8") as file:
        file.write(head + mapping(tree))
    return found
