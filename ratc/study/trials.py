"""Trials of a study: each is compiled as a run of its own, and its result is read from the run's files."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ratc import files, layers
from ratc.diagnostics import Diagnostic, has_errors
from ratc.fitting.check_batch import Checks
from ratc.study.trial_files import TrialFiles
from ratc.sweep import Point
from ratc.targets.array import Array
from ratc.targets.artifact import Place
from ratc.tuning import outcome
from ratc.tuning.outcome import Trial
from ratc.tuning.points import Study
from ratc.workflow import inputs
from ratc.workflow.compile import as_word, compile_spec
from ratc.workflow.compile_array import left_out as left_out_finding
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.inputs import Loaded
from ratc.workflow.points import resolve
from ratc.workflow.request import CompileRequest
from ratc.yaml.write import mapping

#: The study's own folder, below the output folder.
FOLDER = "study"
#: Values that follow from the experiment's name, and stay those of the study.
_SHARED = ("logging.mlflow_experiment_name", "logging.wandb_project")


class StudyLocked(Exception):
    """Another process runs the study."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A trial that can run: its files, and its number of GPUs on one machine.

    ``settings`` are the words behind `--set` that turn the spec into it.
    """

    point: Point
    files: TrialFiles
    gpus: int
    settings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrialMaker:
    """Makes trials of a study's points, from the data that they share. ``gpus`` are those of each trial."""

    request: CompileRequest
    base: str
    gpus: int
    name: str
    output: str
    shared: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The study's own folder, below the output folder."""
        return os.path.join(self.base, FOLDER)

    def trial(self, point: Point) -> Compiled:
        """Return a point as a trial: as in an array, each has its own name and folder, and all share one tracker."""
        settings = (
            *(f"{path}={as_word(node.data())}" for path, node in point.nodes),
            f"experiment_name={self.name}-{point.name}",
            f"output_dir={self.output}/{point.name}",
            *self.shared,
        )
        own = TrialFiles(os.path.join(self.folder, "trials", point.name), os.path.join(self.base, point.name))
        return Compiled(point, own, self.gpus, settings)

    def compile(self, trial: Compiled, folder: str | None = None) -> tuple[Diagnostic, ...]:
        """Compile a trial for this machine, as `ratc compile` with its values as `--set`; returns the errors."""
        inner = os.path.join(os.path.relpath(folder or trial.files.folder, self.base), "lock.yaml")
        files.refuse_link(self.base, inner)
        taken = {"experiment_name", "output_dir", *(path for path, _ in trial.point.nodes)}
        own = replace(
            self.request,
            sets=(*self.request.sets, *trial.settings),
            short={name: value for name, value in self.request.short.items() if layers.SHORT_NAMES[name] not in taken},
            output=folder or trial.files.folder,
        )
        printer = _Quiet()
        # The written files are reported for the study as a whole.
        with contextlib.redirect_stderr(io.StringIO()):
            status, _ = compile_spec(own, check=False, printer=printer)
        return tuple(printer.kept) if status else ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study's checked points: the trials that can run, and those that cannot, with reasons."""

    ready: Sequence[Compiled] = ()
    left: Sequence[tuple[Point, Diagnostic]] = ()
    maker: TrialMaker | None = None


def prepare(
    request: CompileRequest, loaded: Loaded, study: Study, checks: Checks | None
) -> tuple[Prepared, tuple[Diagnostic, ...]]:
    """Resolve every point of a study for this machine; nothing is written. Codes: those of a spec, R338, R339."""
    assert loaded.settings is not None
    assert loaded.document is not None
    gathered, found = inputs.gather(request, loaded.settings)
    if gathered is None:
        return Prepared(), found
    hardware, more = gathered.settled(loaded.settings)
    found += more
    if hardware is None:
        return Prepared(), found
    array, left = Array(Place(".", ".", "", "", {}), None, study.span), list[tuple[Point, Diagnostic]]()
    found += resolve(request, loaded.document, study.points, hardware, array, left, checks)
    found += left_out_finding(study, left)
    if has_errors(found) or array.first is None:
        return Prepared(left=left), found
    values = array.first.values
    output = values.get_as(str, "output_dir")
    maker = TrialMaker(
        request,
        os.path.normpath(os.path.join(loaded.folder, output)),
        values.get_as(int, "parallel.world_size") if values["hardware.device"].value == "cuda" else 0,
        values.get_as(str, "experiment_name"),
        output,
        tuple(f"{path}={as_word(values[path].value)}" for path in _SHARED),
    )
    names = {entry.name for entry in array.entries}
    ready = [maker.trial(point) for point in study.points if point.name in names]
    return Prepared(ready, left, maker), found


class _Quiet(FindingsPrinter):
    def __init__(self) -> None:
        super().__init__("ratc tune", "json")

    @property
    def kept(self) -> list[Diagnostic]:
        """The diagnostics that were not printed."""
        return self._kept


def result(trial: Compiled, study: Study) -> Trial:
    """Return a trial's status, metric and time from the files in its output folder."""
    values, files = {path: node.data() for path, node in trial.point.nodes}, trial.files
    results = files.results()
    if not results:
        held = files.is_held()
        why = "" if held else files.last_code()
        status = outcome.RUNNING if held else outcome.FAILED if why else outcome.OPEN
        return Trial(trial.point.name, values, status, why=why)
    metric, epoch = outcome.judged(results, study.metric, study.larger_is_better)
    status = outcome.FINISHED if results.get("status") == "finished" else outcome.OPEN
    if status == outcome.OPEN and os.path.exists(files.folder) and files.ended_early():
        status = outcome.EARLY
    elif status == outcome.OPEN and files.is_held():
        status = outcome.RUNNING
    return Trial(trial.point.name, values, status, metric, epoch, results.get("wall_seconds"))


def left_out(left: Sequence[tuple[Point, Diagnostic]]) -> list[Trial]:
    """Return the points that cannot run, as trials without a metric."""
    return [
        Trial(point.name, {path: node.data() for path, node in point.nodes}, outcome.LEFT_OUT, why=why.code)
        for point, why in left
    ]


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Lock a study's folder against another `ratc tune`. Raises StudyLocked if one holds it. The kernel releases the
    lock at the process's end.
    """
    files.make_folders(folder)
    with files.open_own(os.path.join(folder, ".running")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyLocked from None
        yield


def keep_best(maker: TrialMaker, trial: Compiled, folder: str) -> tuple[Diagnostic, ...]:
    """Compile the best trial into a folder, with an overlay of its values for the spec beside it.

    A trial that this machine cannot run, over several nodes, has the overlay alone; the reasons are returned.
    """
    files.refuse_link(maker.base, os.path.join(os.path.relpath(folder, maker.base), "overlay.yaml"))
    files.make_folders(folder)
    found = maker.compile(trial, folder)
    tree: dict[str, Any] = {}
    for path, node in trial.point.nodes:
        *parents, key = path.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = node.data()
    head = f"# The values of {trial.point.name}, the best trial of its study.\n"
    files.replace(os.path.join(folder, "overlay.yaml"), (head + mapping(tree)).encode())
    return found
