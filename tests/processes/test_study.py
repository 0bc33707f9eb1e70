"""A study of real trainings on the brain images: killed, continued, and its best trial run again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment, results
from tests.places import ROOT

#: Enough to kill the study after three, with two under way.
TRIALS = 6


def tune(folder: Path, *options: str) -> subprocess.Popen[str]:
    environ = {**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    command = [sys.executable, "-m", "ratc", "tune", "brain_tuning/config.yaml", "--set", f"tuning.trials={TRIALS}"]
    command += options
    return subprocess.Popen(command, cwd=folder, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_killed_study_continues_and_its_best_trial_can_be_run_again(tmp_path: Path) -> None:
    spec = ROOT / "specs/brain_tuning/config.yaml"
    (tmp_path / "brain_tuning").mkdir()
    shutil.copy(spec, tmp_path / "brain_tuning")
    made = [sys.executable, "-m", "ratc_runtime.data.sample", "--", "brain", str(tmp_path / "brain/data")]
    subprocess.run(made, env=environment(), check=True, capture_output=True)
    output = tmp_path / "brain_tuning/outputs/brain_tuning"

    first = tune(tmp_path)
    limit = time.monotonic() + HANGS_S
    while len(list(output.glob("*/results.json"))) < 3 and time.monotonic() < limit:
        time.sleep(0.05)
    # Another one is refused while this one runs.
    other = tune(tmp_path)
    assert "another `ratc tune` is running this study" in other.communicate(timeout=HANGS_S)[1]
    assert other.returncode == 1
    first.kill()
    first.communicate()
    finished = {path.parent.name: path.stat().st_mtime_ns for path in output.glob("*/results.json")}
    assert 3 <= len(finished) < TRIALS

    second = tune(tmp_path)
    out, err = second.communicate(timeout=HANGS_S)
    assert second.returncode == 0, err
    for name, written in finished.items():
        if json.loads((output / name / "results.json").read_text())["status"] == "finished":
            assert (output / name / "results.json").stat().st_mtime_ns == written, "what was finished is not run again"
    study = json.loads((output / "study/study.json").read_text())
    assert [trial["status"] for trial in study["trials"]] == ["finished"] * TRIALS
    assert out.splitlines()[1].startswith(study["best"])
    rows = list(csv.DictReader((output / "study/trials.csv").open()))
    best = max(rows, key=lambda row: float(row["dice"]))
    assert best["trial"] == study["best"]
    assert float(best["dice"]) > 0.5, "three epochs find some of the white matter"

    # The best one's lock is that of its trial; its script, run elsewhere, finds the same to the last bit.
    kept = output / "study/best"
    assert (kept / "run.sh").exists()
    digest = results(output / study["best"])["fingerprint"]
    environ = {**environment(RAT_OUTPUT_DIR=str(tmp_path / "again"), RATC_PYTHON=sys.executable)}
    done = subprocess.run([str(kept / "run.sh")], env=environ, capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    again = results(tmp_path / "again")
    assert again["fingerprint"] == digest
    assert max(epoch["val_dice"] for epoch in again["epochs"]) == float(best["dice"])

    # Asked to stop, the trials save; nothing is left of a trial that runs on.
    third = tune(tmp_path, "--seed", "5", "--output-dir", str(tmp_path / "third"))
    while not list((tmp_path / "third").glob("*/checkpoints/last.pt")) and time.monotonic() < limit + 300:
        time.sleep(0.05)
    os.kill(third.pid, signal.SIGTERM)
    _, err = third.communicate(timeout=HANGS_S)
    assert third.returncode == 130, err
    assert "stopping (SIGTERM): running trials save a checkpoint" in err
    assert "Traceback" not in err
