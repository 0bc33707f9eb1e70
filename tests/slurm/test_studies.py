"""A study as an array job on a real Slurm: four trials, each on two nodes, one of them stopped and continued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests import jobs
from tests.jobs import for_jobs, ratc, results, spec, wait_until, write_project
from tests.slurm.cluster import ENDED, Slurm

pytestmark = pytest.mark.slow

CLUSTER = str(Path(__file__).with_name("cluster.yaml"))
STUDY = {
    "backend": "array",
    "search_space": {"learning_rate": {"choices": [1e-3, 1e-2]}, "model.num_blocks": {"choices": [1, 2]}},
    "metric": "dice",
    "max_parallel": 2,
}


def test_a_study_over_two_nodes_finds_its_best_trial(slurm: Slurm, tmp_path: Path) -> None:
    content = spec(
        resources__cluster=CLUSTER,
        resources__nodes=2,
        training__batch_size=4,
        training__epochs=1,
        tuning=STUDY,
    )
    folder = write_project(tmp_path / "study", content)
    compiled = jobs.compiled(folder, "slurm")
    names = sorted(path.name for path in (compiled / "points").iterdir())
    assert len(names) == 4
    # The first one is slow until it has been stopped.
    (folder / "outputs/demo" / names[0]).mkdir(parents=True)
    (folder / "outputs/demo" / names[0] / "slow").write_text("0.5")
    job = slurm.submit("job/job.sbatch", folder=folder, **for_jobs())
    tasks = [f"{job}_{number}" for number in range(1, 5)]
    logs = f"demo-{job}_1.out"
    wait_until(lambda: "global batch" in "".join(path.read_text() for path in folder.glob(logs)), "a trial trains")
    slurm.signal(tasks[0], "USR2", batch=True)
    wait_until(lambda: all(slurm.state(task) in ENDED for task in tasks), "all trials are done")
    assert [slurm.state(task) for task in tasks] == ["COMPLETED"] * 4
    assert [slurm.facts(task)["Restarts"] for task in tasks] == ["1", "0", "0", "0"]

    done = ratc(folder, "tune", "spec.yaml", "--collect")
    assert done.returncode == 0, done.stderr
    study = folder / "outputs/demo/study"
    found = json.loads((study / "study.json").read_text())["trials"]
    scores = {name: max(epoch["val_dice"] for epoch in results(folder, name)["epochs"]) for name in names}
    assert {trial["name"]: trial["metric"] for trial in found} == pytest.approx(scores)
    best = max(scores, key=lambda name: scores[name])
    assert f"best: {best}" in done.stderr
    # Two nodes are no matter of the machine that collects: it says so, and keeps the values.
    assert "best/ has the overlay alone, this machine cannot run it: [R401]" in done.stderr
    values = yaml.safe_load((study / "best" / "overlay.yaml").read_text())
    chosen = next(trial["values"] for trial in found if trial["name"] == best)
    assert values["training"]["learning_rate"] == chosen["training.learning_rate"]
    assert values["model"]["num_blocks"] == chosen["model.num_blocks"]
