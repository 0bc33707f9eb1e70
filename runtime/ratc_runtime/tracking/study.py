"""A study in MLflow: a parent run with the runs of its trials. `python -m ratc_runtime.tracking.study`.

It is made afterwards, from `study.json` and the trials' logged runs, and can be repeated. Trials that logged to a
server (MLFLOW_TRACKING_URI) get a parent there. Trials with separate files are copied into one, beside the study,
because MLflow cannot relate runs of different stores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from ratc_runtime.errors import warn
from ratc_runtime.tracking import mlflow as tracking

STUDY_TAG = "ratc.study"
#: MLflow's own tag, which its pages show as a tree (mlflow.utils.mlflow_tags.MLFLOW_PARENT_RUN_ID).
PARENT_TAG = "mlflow.parentRunId"
OUTCOME = ("trials.csv", "study.json", "study.svg")


def gather(folder: Path, experiment: str) -> str:
    """Make the parent run of the study in `folder`, with its trials below it; return the store's address.

    Raises MlflowException or OSError if the store cannot be reached or written.
    """
    from mlflow.tracking import MlflowClient

    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    given = os.environ.get("MLFLOW_TRACKING_URI")
    uri = given or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    where = _experiment(client, experiment, None if given else folder)
    parent = _parent(client, where, folder, study)
    for trial in study["trials"]:
        output = folder.parent / trial["name"]
        for run_id in _known(output):
            source = client if given else _own(output)
            found = None if source is None else _find(source, f"tags.`{tracking.RUN_TAG}` = '{run_id}'")
            if found is not None:
                child = found if given else _copy(source, found, client, where, run_id)
                client.set_tag(child, PARENT_TAG, parent)
                client.set_tag(child, "ratc.trial", trial["name"])
                client.set_tag(child, "ratc.trial_status", trial["status"])
    client.set_terminated(parent)
    return uri


def _known(output: Path) -> list[str]:
    """Return the ids, ratc's own, of the runs that a trial's folder has logged."""
    try:
        return sorted(path.name for path in (output / "tracking").iterdir() if path.is_dir())
    except OSError:
        return []


def _own(output: Path) -> Any:
    """Return a client of a trial's own file; None if there is none."""
    from mlflow.tracking import MlflowClient

    path = output.resolve() / "mlflow.db"
    return MlflowClient(tracking_uri=f"sqlite:///{path}") if path.exists() else None


def _find(client: Any, words: str) -> str | None:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, words, max_results=1)
    return str(found[0].info.run_id) if found else None


def _experiment(client: Any, name: str, folder: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    artifacts = (folder.resolve() / "mlartifacts").as_uri() if folder else None
    return str(client.create_experiment(name, artifacts))


def _parent(client: Any, where: str, folder: Path, study: dict[str, Any]) -> str:
    """Return the study's own run: the search space, the best trial's values and metric, and the outcome."""
    key = str(folder.resolve())
    run = _find(client, f"tags.`{STUDY_TAG}` = '{key}'")
    if run is None:
        name = f"study {folder.resolve().parent.name}"
        run = client.create_run(where, tags={STUDY_TAG: key}, run_name=name).info.run_id
    best = next((trial for trial in study["trials"] if trial["name"] == study["best"]), None)
    # Tags, not parameters, which cannot be changed if the study changes.
    tags = {f"search_space.{path}": text for path, text in study["search_space"].items()}
    tags |= {"metric": study["metric"], "best_trial": str(study["best"])}
    if best is not None:
        tags |= {f"best.{path}": str(value) for path, value in best["values"].items()}
        client.log_metric(run, f"best_{study['metric']}", best["metric"])
    for name, value in tags.items():
        client.set_tag(run, name, value)
    for name in OUTCOME:
        if (folder / name).exists():
            client.log_artifact(run, str(folder / name))
    return str(run)


def _copy(source: Any, run: str, client: Any, where: str, run_id: str) -> str:
    """Copy a run of one store into another, with every point of its curves. An existing copy is updated."""
    from mlflow.entities import Param

    content = source.get_run(run)
    copied = _find(client, f"tags.`{tracking.RUN_TAG}` = '{run_id}'")
    if copied is None:
        tags = {tracking.RUN_TAG: run_id, "ratc.copied_from": source.tracking_uri}
        copied = str(client.create_run(where, content.info.start_time, tags, content.info.run_name).info.run_id)
        params = [Param(name, value) for name, value in content.data.params.items()]
        for at in range(0, len(params), tracking.PARAMS_PER_CALL):
            client.log_batch(copied, params=params[at : at + tracking.PARAMS_PER_CALL])
    points = [point for name in content.data.metrics for point in source.get_metric_history(run, name)]
    for at in range(0, len(points), tracking.METRICS_PER_CALL):
        client.log_batch(copied, metrics=points[at : at + tracking.METRICS_PER_CALL])
    client.set_terminated(copied, content.info.status, content.info.end_time)
    return copied


def main(argv: list[str] | None = None) -> int:
    """Gather a study; return 1, with a warning, on failure."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime.tracking.study", description="Group the trials of a study below one run of MLflow."
    )
    parser.add_argument("folder", type=Path, help="the study's folder, which holds study.json")
    parser.add_argument("--experiment", required=True, help="the experiment of MLflow")
    arguments = parser.parse_args(argv)
    tracking.prepare()
    try:
        uri = gather(arguments.folder, arguments.experiment)
    except Exception as error:  # a package that is missing, a server that does not answer: the study is there anyway
        warn(f"the study is not in MLflow: {type(error).__name__}: {' '.join(str(error).split()):.300}")
        return 1
    print(f"MLflow: {tracking.without_secrets(uri)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
