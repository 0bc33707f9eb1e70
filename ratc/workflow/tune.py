"""Runs a study on this machine, and writes the results of its trials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TextIO

from ratc import compiler, files
from ratc.catalog import launch_variables
from ratc.console import say
from ratc.diagnostics import Diagnostic
from ratc.fitting.check_batch import Checks
from ratc.markup import lines
from ratc.study import proposed, ray_settings, trials
from ratc.study.budget import Budget
from ratc.study.run_here import Runner
from ratc.study.trials import Compiled, Prepared, TrialMaker
from ratc.tuning import outcome, picture
from ratc.tuning import share as shares
from ratc.tuning.outcome import Trial
from ratc.tuning.points import Study
from ratc.tuning.share import Share
from ratc.units import counted
from ratc.workflow import findings, inputs, require_trust
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.inputs import Loaded
from ratc.workflow.request import CompileRequest


def tune(
    request: CompileRequest,
    out: TextIO,
    collect: bool,
    dry_run: bool,
    job_lock: str | None,
    ray_address: str | None,
    printer: FindingsPrinter,
) -> int:
    """Run a study's trials here, or ``collect`` their results; prints to ``out`` and returns the exit status."""
    request, loaded, study, share, found = _read(request)
    if study is None:
        printer.print(found)
        return 1
    if not (dry_run or collect) and (untrusted := require_trust.refused(loaded)):
        printer.print((*found, *untrusted))
        return 1
    prepared, more = trials.prepare(request, loaded, study, Checks() if request.predict and not collect else None)
    if printer.print((*found, *more)) or prepared.maker is None:
        return 1
    maker = prepared.maker
    if dry_run:
        _list_trials(study, prepared, out)
        return 0
    status = 0
    if collect:
        prepared = _proposed(study, prepared, maker)
    else:
        status, prepared = _execute(study, prepared, maker, share, ray_address)
        if status == 1:
            return 1
    ended = [*(trials.result(one, study) for one in prepared.ready), *trials.left_out(prepared.left)]
    ended.sort(key=lambda trial: trial.name)
    chosen = outcome.best(ended, study.larger_is_better)
    whole = status == 0 and chosen is not None
    finished = _finished(maker.folder) if collect else [_digest(job_lock)] if whole and job_lock else []
    _write(maker, study, prepared.ready, ended, finished)
    if loaded.settings and loaded.settings["logging.use_mlflow"].value:
        _track(maker)
    print(lines(outcome.table(study, ended)), end="", file=out)
    if chosen is None:
        print("ratc tune: no trial has ended with a metric", file=sys.stderr)
        return status or 1
    say(f"best: {chosen.name}; written: {os.path.relpath(maker.folder)}")
    return status


def _read(
    request: CompileRequest,
) -> tuple[CompileRequest, Loaded, Study | None, Share | None, tuple[Diagnostic, ...]]:
    """Load the spec and its study. With Ray, the spec is read as that of a trial, on a share of one node."""
    loaded = inputs.load(request)
    if loaded.settings is None or loaded.document is None:
        return request, loaded, None, None, loaded.diagnostics
    study, found = compiler.study(loaded.document)
    if study is None:
        nothing = Diagnostic(
            "R336", "the spec has no `tuning`", helps=("add `tuning.search_space`, the values to try",)
        )
        return request, loaded, None, None, (*loaded.diagnostics, *(found or (nothing,)))
    found = (*loaded.diagnostics, *found)
    if study.backend != "ray":
        return request, loaded, study, None, found
    gathered, more = inputs.gather(request, loaded.settings)
    hardware, said = gathered.settled(loaded.settings) if gathered else (None, ())
    found += (*more, *said)
    if hardware is None:
        return request, loaded, None, None, found
    gpus, cpus = hardware.get_as(int, "gpus_per_node"), hardware.maybe(int, "cpus")
    share, more = shares.share(loaded.settings, gpus, cpus)
    if share is None:
        return request, loaded, None, None, (*found, *more)
    container = loaded.settings["environment.container"].value is not None
    request = replace(request, sets=(*request.sets, *share.settings(container)))
    loaded = inputs.load(request)
    return request, loaded, study if loaded.settings else None, share, (*found, *more, *loaded.diagnostics)


def _list_trials(study: Study, prepared: Prepared, out: TextIO) -> None:
    """Print the trials that would run."""
    if study.adaptive:
        say(f"{counted(study.trials, 'trial')}, each chosen from the results of the trials before it", out)
        return
    for trial in prepared.ready:
        say(f"{trial.point.name}  {trial.point.text}", out)


def _proposed(study: Study, prepared: Prepared, maker: TrialMaker) -> Prepared:
    """Reduce the trials of an adaptive study to those that have begun."""
    if not study.adaptive:
        return prepared
    known = [maker.trial(point) for point in proposed.read(maker.folder, study).points(study)]
    begun = [trial for trial in known if os.path.isdir(trial.files.folder)]
    return Prepared(begun, prepared.left, maker)


def _execute(
    study: Study, prepared: Prepared, maker: TrialMaker, share: Share | None, address: str | None
) -> tuple[int, Prepared]:
    """Run the unfinished trials. Returns the status: 130 if stopped, 1 if it cannot run or another process runs it."""
    try:
        with trials.alone_in(maker.folder):
            for trial in () if study.adaptive else prepared.ready:
                wrong = maker.compile(trial)
                if wrong:
                    findings.show(wrong, "ratc tune")
                    return 1, prepared
            if share is None:
                budget = Budget(maker.folder, study.budget_seconds)
                return Runner(study, prepared.ready, budget).run(), prepared
            if address is None:
                os.environ.update(ray_settings.ALONE)  # before Ray is imported
            try:
                from ratc.study import run_ray
            except ImportError as error:
                helps = ("pip install 'ratc[tune]'", "or use `backend: array`, which needs no Ray")
                findings.show([Diagnostic("R550", f"Ray Tune cannot be imported: {error}", helps=helps)], "ratc tune")
                return 1, prepared
            return run_ray.run(study, prepared, share, address)
    except trials.StudyLocked:
        say(f"ratc tune: another `ratc tune` is running this study: {os.path.relpath(maker.folder)}")
        return 1, prepared


def _track(maker: TrialMaker) -> None:
    """Let the runtime put the trials' runs below a run of the study in MLflow; it prints its own messages."""
    words = [os.environ.get("RATC_PYTHON") or sys.executable, "-m", "ratc_runtime.tracking.study"]
    experiment = dict(setting.split("=", 1) for setting in maker.shared)["logging.mlflow_experiment_name"]
    environment = {**os.environ, **launch_variables.SAFE}
    subprocess.run([*words, maker.folder, "--experiment", experiment], check=False, env=environment)


def _digest(lock: str) -> str:
    """The SHA-256 of a lock."""
    with open(lock, "rb") as file:
        return sha256(file.read()).hexdigest()


def _finished(folder: str) -> list[str]:
    """Return the digests of the jobs' locks that have run the study to its end, from the last `study.json`."""
    try:
        with files.open_regular(os.path.join(folder, "study.json")) as file:
            return [str(digest) for digest in json.load(file)["finished_locks"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _write(
    maker: TrialMaker, study: Study, ready: Sequence[Compiled], ended: Sequence[Trial], finished: Sequence[str]
) -> None:
    """Write the study's files. ``finished`` are the digests of the jobs' locks that have run it to its end."""
    folder = maker.folder
    files.make_folders(folder)
    texts = {
        "trials.csv": outcome.as_csv(study, ended),
        "study.json": outcome.as_json(study, ended, finished),
        "study.svg": picture.svg(study, ended),
    }
    for name, text in texts.items():
        files.replace(os.path.join(folder, name), text.encode(), flush=False)
    chosen = outcome.best(ended, study.larger_is_better)
    if chosen is not None:
        one = next(one for one in ready if one.point.name == chosen.name)
        for item in trials.keep_best(maker, one, os.path.join(folder, "best")):
            said = f"[{item.code}] {item.message}"
            say(f"ratc tune: best/ holds only the overlay, because this machine cannot run the trial: {said}")
