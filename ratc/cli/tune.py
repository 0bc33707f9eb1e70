"""Run the study that a spec's `tuning` describes on this machine, or gather what its array job has found.

Every trial is compiled as a run of its own before the first one starts. What is finished is not run again, and what was
cut off goes on from its checkpoint: after any end, the same command continues. The outcome lies in `study/` below
the output folder: trials.csv, study.json, study.svg, and `best/`, the best trial's compiled files and its overlay.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ratc import compiler
from ratc.cli import inputs, trials
from ratc.cli.telling import Telling
from ratc.cli.trials import Compiled
from ratc.cli.trials_here import Runner
from ratc.diagnostics import Diagnostic, has_errors
from ratc.tuning import outcome, picture
from ratc.tuning.outcome import Trial
from ratc.tuning.points import Study

FOLDER = "study"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc tune``."""
    inputs.add_spec_arguments(parser, target=False)
    inputs.add_format_argument(parser)
    parser.add_argument("--collect", action="store_true", help="run nothing: gather what has been found so far")
    parser.add_argument("--dry-run", action="store_true", help="say which trials there would be, and run nothing")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 on errors and where no trial has a result, 130 where it was interrupted."""
    with Telling("ratc tune", args.format) as telling:
        return _run(args, telling)


def _run(args: argparse.Namespace, telling: Telling) -> int:
    loaded = inputs.load(args, "local")
    if loaded.settings is None or loaded.document is None:
        telling.tell(loaded.diagnostics)
        return 1
    study, found = compiler.study(loaded.document)
    if study is None:
        nothing = (Diagnostic("R336", "the spec has no `tuning`", helps=("`tuning.search_space` says what to try",)),)
        telling.tell((*loaded.diagnostics, *(found or nothing)))
        return 1
    ready, left, more = trials.prepare(args, loaded, study, write=not (args.collect or args.dry_run))
    # That Ray is not run is no matter here: the trials are.
    said = [item for item in (*loaded.diagnostics, *found, *more) if item.code != "R206"]
    if telling.tell(said) or has_errors(said):
        return 1
    out = sys.stdout if args.format == "text" else sys.stderr
    if args.dry_run:
        for trial in ready:
            print(f"{trial.point.name}  {trial.point.text}", file=out)
        return 0
    status = 0
    folder = os.path.join(os.path.dirname(ready[0].output), FOLDER)
    if not args.collect:
        status = _execute(study, ready, folder)
        if status == 1:
            return 1
    ended = [*(trials.result(one, study) for one in ready), *trials.left_out(left)]
    ended.sort(key=lambda trial: trial.name)
    _write(args, study, ready, ended, folder)
    print(outcome.table(study, ended), end="", file=out)
    chosen = outcome.best(ended, study.larger_is_better)
    if chosen is None:
        print("ratc tune: no trial has ended with a metric", file=sys.stderr)
        return status or 1
    print(f"best: {chosen.name}; written: {os.path.relpath(folder)}", file=sys.stderr)
    return status


def _execute(study: Study, ready: Sequence[Compiled], folder: str) -> int:
    """Run what is not finished; 130 where somebody stopped it, 1 where another process runs it."""
    try:
        with trials.alone_in(folder):
            return Runner(study, ready).run()
    except trials.Held:
        print(f"ratc tune: another `ratc tune` runs this study: {os.path.relpath(folder)}", file=sys.stderr)
        return 1


def _write(
    args: argparse.Namespace, study: Study, ready: Sequence[Compiled], ended: Sequence[Trial], folder: str
) -> None:
    os.makedirs(folder, exist_ok=True)
    texts = {
        "trials.csv": outcome.as_csv(study, ended),
        "study.json": outcome.as_json(study, ended),
        "study.svg": picture.svg(study, ended),
    }
    for name, text in texts.items():
        work = os.path.join(folder, f".{name}.new")
        with open(work, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(work, os.path.join(folder, name))
    chosen = outcome.best(ended, study.larger_is_better)
    if chosen is not None:
        one = next(one for one in ready if one.point.name == chosen.name)
        for item in trials.keep_best(args, one, os.path.join(folder, "best")):
            said = f"[{item.code}] {item.message}"
            print(f"ratc tune: best/ has the overlay alone, this machine cannot run it: {said}", file=sys.stderr)
