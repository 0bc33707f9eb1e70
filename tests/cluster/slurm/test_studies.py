"""Studies on a real Slurm, as an array job and with Ray: trials on two nodes, stopped and continued."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import yaml

from tests.cluster.slurm.cluster import ENDED, Slurm
from tests.helpers import jobs
from tests.helpers.jobs import for_jobs, ratc, results, spec, write_project
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow

CLUSTER = str(Path(__file__).with_name("cluster.yaml"))
STUDY = {
    "backend": "array",
    "search_space": {"learning_rate": {"choices": [1e-3, 3e-3, 1e-2]}},
    "metric": "dice",
    "max_parallel": 2,
}


def test_an_array_study_over_two_nodes_finds_its_best_trial(slurm: Slurm, tmp_path: Path) -> None:
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
    assert len(names) == 3
    # The first one is slow until it has been stopped.
    (folder / "outputs/demo" / names[0]).mkdir(parents=True)
    (folder / "outputs/demo" / names[0] / "slow").write_text("0.5")
    job = slurm.submit("job/job.sbatch", folder=folder, **for_jobs())
    tasks = [f"{job}_{number}" for number in range(1, 4)]
    logs = f"demo-{job}_1.out"
    wait_until(lambda: "global batch" in "".join(path.read_text() for path in folder.glob(logs)), "a trial trains")
    slurm.signal(tasks[0], "USR2", batch=True)
    wait_until(lambda: all(slurm.state(task) in ENDED for task in tasks), "all trials are done")
    assert [slurm.state(task) for task in tasks] == ["COMPLETED"] * 3
    assert [slurm.facts(task)["Restarts"] for task in tasks] == ["1", "0", "0"]

    done = ratc(folder, "tune", "spec.yaml", "--collect")
    assert done.returncode == 0, done.stderr
    study = folder / "outputs/demo/study"
    found = json.loads((study / "study.json").read_text())["trials"]
    scores = {name: max(epoch["val_dice"] for epoch in results(folder, name)["epochs"]) for name in names}
    assert {trial["name"]: trial["metric"] for trial in found} == pytest.approx(scores)
    best = max(scores, key=lambda name: scores[name])
    assert f"best: {best}" in done.stderr
    # Two nodes are no matter of the machine that collects: it says so, and keeps the values.
    assert "best/ holds only the overlay, because this machine cannot run the trial: [R401]" in done.stderr
    values = yaml.safe_load((study / "best" / "overlay.yaml").read_text())
    chosen = next(trial["values"] for trial in found if trial["name"] == best)
    assert values["training"]["learning_rate"] == chosen["training.learning_rate"]


def test_a_ray_study_over_two_nodes_continues_after_a_stop(slurm: Slurm, tmp_path: Path) -> None:
    tuning = {
        "backend": "ray",
        "search_space": {"learning_rate": {"choices": [1e-3, 3e-3, 1e-2]}},
        "metric": "loss",
        "early_stopping": "none",
    }
    content = spec(
        resources__cluster=CLUSTER, resources__nodes=2, training__batch_size=8, training__epochs=2, tuning=tuning
    )
    folder = write_project(tmp_path / "study", content)
    jobs.compiled(folder, "slurm")
    output = folder / "outputs/demo"
    dry = ratc(folder, "tune", "spec.yaml", "--facts", "job/facts.yaml", "--dry-run")
    names = [line.split()[0] for line in dry.stdout.splitlines()]
    assert len(names) == 3
    # All but the first are slow until they have been stopped.
    for name in names[1:]:
        (output / name).mkdir(parents=True)
        (output / name / "slow").write_text("1")
    job = slurm.submit("job/job.sbatch", folder=folder, **for_ray())

    def lives() -> bool:
        assert slurm.state(job) not in ENDED, "".join(path.read_text() for path in folder.glob(f"demo-{job}.out"))
        return True

    wait_until(lambda: lives() and "finished" in status(output, names[0]), "one trial has ended")
    first = (output / names[0] / "results.json").stat().st_mtime_ns
    wait_until(lambda: lives() and "global batch" in log(output, names[2]), "the next one trains")
    slurm.signal(job, "USR2", batch=True)
    wait_until(lambda: slurm.state(job) in ENDED, "the study is done")
    said = "".join(path.read_text() for path in folder.glob(f"demo-{job}.out"))
    assert slurm.state(job) == "COMPLETED", said
    assert slurm.facts(job)["Restarts"] == "1"
    assert "saved: requeued, restart 1" in said
    assert "Traceback" not in said
    assert (output / names[0] / "results.json").stat().st_mtime_ns == first, "what was finished is not run again"

    found = json.loads((output / "study/study.json").read_text())
    assert [trial["status"] for trial in found["trials"]] == ["finished"] * 3
    assert (output / "study/best/run.sh").exists()
    assert {results(folder, name)["job"]["id"] for name in names} == {job}
    # Both nodes had trials; where this machine gives nodes no names of their own, all have its name.
    hosts = {json.loads((output / name / "owner.json").read_text())["host"] for name in names}
    assert hosts in ({"ratc-n1", "ratc-n2"}, {socket.gethostname()})
    losses = {trial["name"]: trial["metric"] for trial in found["trials"]}
    assert found["best"] == min(losses, key=lambda name: losses[name])
    assert not list(Path("/tmp").glob(f"ratc-ray-*-{job}.*"))


def for_ray() -> dict[str, str]:
    """The job runs ratc itself, too."""
    variables = for_jobs()
    return {**variables, "PYTHONPATH": f"{jobs.ROOT}:{variables['PYTHONPATH']}"}


def status(output: Path, name: str) -> str:
    """How far a trial is."""
    path = output / name / "results.json"
    return str(json.loads(path.read_text())["status"]) if path.exists() else ""


def log(output: Path, name: str) -> str:
    """What a trial's script has printed."""
    path = output / f"study/trials/{name}.log"
    return path.read_text() if path.exists() else ""
