"""A Ray study of real trainings on the brain images: killed, continued, and its best trial run again."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment, results
from tests.helpers.waiting import wait_until
from tests.places import ROOT

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
#: Fewer than the spec has.
TRIALS = 6


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "ratc", "tune", "brain_ray/config.yaml", *options]


def launch_environment() -> dict[str, str]:
    return {**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", "TERM": "xterm"}


def tune(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("--set", f"tuning.trials={TRIALS}", *options),
        cwd=folder,
        env=launch_environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def trainings(folder: Path) -> list[str]:
    """The processes that train below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "ratc_runtime.train" in words and str(folder) in " ".join(words):
            found.append(path.parent.name)
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(ROOT / "specs/brain_ray", folder / "brain_ray", ignore=shutil.ignore_patterns("outputs"))
    made = [sys.executable, "-m", "ratc_runtime.data.sample", "--", "brain", str(folder / "brain/data")]
    subprocess.run(made, env=environment(), check=True, capture_output=True)
    return folder


def test_a_killed_ray_study_continues_and_its_best_trial_can_be_run_again(project: Path) -> None:
    output = project / "brain_ray/outputs/brain_ray"
    first = tune(project)
    wait_until(lambda: len(list(output.glob("*/results.json"))) >= 3 or first.poll() is not None, "three trials ended")
    assert first.poll() is None, first.communicate()
    first.kill()
    first.communicate()
    # Nothing is left: what Ray had started is told to save and end when it dies.
    wait_until(lambda: not trainings(project), "no training is left", 60)
    book = (output / "study/proposals.jsonl").read_text().splitlines()
    finished = {
        path.parent.name: path.stat().st_mtime_ns
        for path in output.glob("*/results.json")
        if json.loads(path.read_text())["status"] == "finished"
    }
    assert len(book) >= 4

    second = tune(project)
    out, err = second.communicate(timeout=HANGS_S)
    assert second.returncode == 0, err
    assert "Traceback" not in err
    assert "2 of 6 trials cannot run and are left out" in err
    assert (output / "study/proposals.jsonl").read_text().splitlines()[: len(book)] == book, "proposed again first"
    for name, written in finished.items():
        assert (output / name / "results.json").stat().st_mtime_ns == written, "what was finished is not run again"

    study = json.loads((output / "study/study.json").read_text())
    trials = [trial for trial in study["trials"] if trial["status"] != "left out"]
    assert len(trials) == TRIALS
    assert {trial["status"] for trial in trials} <= {"finished", "ended early"}
    # Every one has values that can be, and no two have the same.
    assert len({json.dumps(trial["values"]) for trial in trials}) == TRIALS
    assert all(trial["values"]["training.batch_size"] in (4, 8) for trial in trials)
    for trial in trials:
        epochs = json.loads((output / trial["name"] / "epochs.json").read_text())["epochs"]
        assert trial["metric"] == min(epoch["val_loss"] for epoch in epochs)
        # One that Ray has ended may have done more epochs by the time it heard of it, on a busy machine all of them.
        assert len(epochs) == 12 if trial["status"] == "finished" else 2 <= len(epochs) <= 12
    ended = [trial["metric"] for trial in trials if trial["status"] == "finished"]
    best = next(trial for trial in trials if trial["name"] == study["best"])
    assert best["metric"] == min(ended)
    assert out.splitlines()[1].startswith(study["best"])
    assert all(trial["metric"] > best["metric"] for trial in trials if trial["status"] == "ended early")

    environ = environment(RAT_OUTPUT_DIR=str(project / "again"), RATC_PYTHON=sys.executable)
    script = str(output / "study/best/run.sh")
    done = subprocess.run([script], env=environ, capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    assert min(epoch["val_loss"] for epoch in results(project / "again")["epochs"]) == best["metric"]

    # Once more there is nothing to do; and gathering says the same without Ray.
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/results.json")}
    third = tune(project)
    out_again, err = third.communicate(timeout=HANGS_S)
    assert (third.returncode, out_again) == (0, out), err
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/results.json")} == before
    collected = tune(project, "--collect")
    assert collected.communicate(timeout=HANGS_S)[0] == out


def test_a_stopped_ray_study_saves_its_trials_and_shows_a_table(project: Path) -> None:
    folder = project / "third"
    screen, end = pty.openpty()
    words = command("--seed", "5", "--output-dir", str(folder), "--set", "training.epochs=500")
    study = subprocess.Popen(words, cwd=project, env=launch_environment(), stdout=subprocess.DEVNULL, stderr=end)
    os.close(end)
    shown = b""
    os.set_blocking(screen, False)

    def read() -> bytes:
        nonlocal shown
        with contextlib.suppress(OSError):
            shown += os.read(screen, 1 << 16)
        return shown

    wait_until(lambda: (read(), list(folder.glob("*/checkpoints/last.pt")))[1], "a trial has saved")
    wait_until(lambda: b"running\r\n" in read(), "the table is drawn", 30)
    study.send_signal(signal.SIGTERM)
    wait_until(lambda: (read(), study.poll())[1] is not None, "the study has ended", 120)
    said = read().decode(errors="replace")
    assert study.returncode == 130, said
    assert (folder / "STOPPED").read_text() == "SIGTERM\n", "a job's script requeues it"
    (folder / "STOPPED").unlink()
    assert "stopping (SIGTERM): running trials save a checkpoint; run the same command again to continue" in said
    assert "Traceback" not in said
    wait_until(lambda: not trainings(folder), "no training is left", 60)
    stopped = [json.loads(path.read_text()) for path in folder.glob("*/results.json")]
    assert stopped
    assert {found["status"] for found in stopped} == {"stopped"}

    # A budget that is spent ends it in the same way, and is no failure.
    spent = tune(
        project, "--seed", "5", "--output-dir", str(folder), "--set", "training.epochs=500",
        "--set", "tuning.budget_hours=0.007",
    )  # fmt: skip
    _, err = spent.communicate(timeout=HANGS_S)
    assert "stopping (the budget is spent)" in err, err
    assert spent.returncode == 1, "no trial has ended, so there is no best one"
    assert "no trial has ended with a metric" in err
    assert not (folder / "STOPPED").exists(), "a job that has had its hours is not requeued"
    assert not trainings(folder)
