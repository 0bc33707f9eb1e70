"""A study in MLflow: one parent run with its trials below it, in a local store or on a server."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ratc_runtime.tracking import study
from ratc_runtime.tracking.mlflow import prepare

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")

TRIALS = {"0001-a": 0.5, "0002-b": 0.75}


def write_study(folder: Path) -> Path:
    """What `ratc tune` leaves of two trials and one that could not be."""
    trials = [
        {"name": name, "values": {"training.learning_rate": score}, "status": "finished", "metric": score}
        for name, score in TRIALS.items()
    ]
    left = {"name": "0003-c", "values": {"training.learning_rate": 1.0}, "status": "left out", "metric": None}
    content = {
        "metric": "dice",
        "best": "0002-b",
        "search_space": {"training.learning_rate": "a number"},
        "trials": [*trials, left],
    }
    (folder / "study").mkdir(parents=True)
    (folder / "study/study.json").write_text(json.dumps(content))
    (folder / "study/trials.csv").write_text("trial\n")
    return folder / "study"


def opened(uri: str) -> MlflowClient:
    from mlflow.tracking import MlflowClient  # here, as its import takes seconds, in each worker of the tests

    return MlflowClient(tracking_uri=uri)


def log_trial(client: MlflowClient, folder: Path, name: str, points: int) -> None:
    """A run as the runtime logs one, with a curve."""
    (folder / name / "tracking" / f"id-{name}").mkdir(parents=True, exist_ok=True)
    known = client.get_experiment_by_name("demo")
    where = known.experiment_id if known else client.create_experiment("demo")
    run = client.create_run(where, tags={"ratc.run": f"id-{name}"}, run_name=f"demo-{name}").info.run_id
    client.log_param(run, "training.epochs", "3")
    for step in range(points):
        client.log_metric(run, "val/dice", TRIALS[name] * (step + 1) / points, step=step)
    client.set_terminated(run)


def runs(client: MlflowClient) -> dict[str, object]:
    where = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_name: run for run in client.search_runs(where)}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    prepare()


def test_trials_in_local_stores_are_copied_below_one_run(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "demo")
    for name in TRIALS:
        (tmp_path / "demo" / name).mkdir()
        own = opened(f"sqlite:///{tmp_path / 'demo' / name / 'mlflow.db'}")
        log_trial(own, tmp_path / "demo", name, 3)
    for _ in range(2):  # once more changes nothing
        uri = study.gather(folder, "demo")
        found = runs(opened(uri))
        assert set(found) == {"study demo", "demo-0001-a", "demo-0002-b"}
        parent = found["study demo"]
        assert parent.info.status == "FINISHED"
        assert parent.data.metrics == {"best_dice": 0.75}
        assert parent.data.tags["best_trial"] == "0002-b"
        assert parent.data.tags["search_space.training.learning_rate"] == "a number"
        for name, score in TRIALS.items():
            child = found[f"demo-{name}"]
            assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert child.data.tags["ratc.trial"] == name
            assert child.data.params == {"training.epochs": "3"}
            curve = opened(uri).get_metric_history(child.info.run_id, "val/dice")
            assert sorted((point.step, point.value) for point in curve) == [
                (step, pytest.approx(score * (step + 1) / 3)) for step in range(3)
            ]


def test_trials_on_a_server_get_a_parent_run_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "demo")
    uri = f"sqlite:///{tmp_path / 'all.db'}"
    client = opened(uri)
    for name in TRIALS:
        log_trial(client, tmp_path / "demo", name, 1)
    before = {name: run.info.run_id for name, run in runs(client).items()}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # where such a store puts artifacts unless it is told otherwise
    assert study.main([str(folder), "--experiment", "demo"]) == 0
    found = runs(client)
    assert {name: run.info.run_id for name, run in found.items() if name != "study demo"} == before
    parent = found.pop("study demo").info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent}
    # A server that is not there costs the picture in MLflow, not the study.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    capsys.readouterr()
    assert study.main([str(folder), "--experiment", "demo"]) == 1
    assert "the study is not in MLflow" in capsys.readouterr().err
