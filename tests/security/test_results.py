"""Results of runs that a stranger wrote: a study accepts only those of its own locks, in their own format."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from ratc.study import trials
from ratc.study.trial_files import TrialFiles
from ratc.study.trials import Compiled
from ratc.sweep import Point
from ratc.tuning import outcome
from ratc.tuning.points import Study
from tests.unit.ratc.tuning.test_tuning import PRODUCT, read

LOCK = b"version: 1\n"
OWN = f"sha256:{sha256(LOCK).hexdigest()}"
WHOLE = {
    "status": "finished",
    "lock_sha256": OWN,
    "epochs": [{"epoch": 1, "val_dice": 0.5}, {"epoch": 2, "val_dice": 0.75}],
    "wall_seconds": 3.5,
}


@pytest.fixture
def study() -> Study:
    return read(PRODUCT)


@pytest.fixture
def trial(tmp_path: Path) -> Compiled:
    files = TrialFiles(str(tmp_path / "study/trials/a"), str(tmp_path / "a"))
    Path(files.folder).mkdir(parents=True)
    Path(files.folder, "lock.yaml").write_bytes(LOCK)
    Path(files.output).mkdir()
    return Compiled(Point("a", "seed=1", ()), files, 0, ())


def found(trial: Compiled, study: Study, content: object) -> outcome.Trial:
    text = content if isinstance(content, str) else json.dumps(content)
    Path(trial.files.output, "results.json").write_text(text)
    return trials.result(trial, study)


def test_a_study_accepts_results_of_its_own_lock(trial: Compiled, study: Study) -> None:
    ended = found(trial, study, WHOLE)
    assert (ended.status, ended.metric, ended.epoch, ended.seconds) == (outcome.FINISHED, 0.75, 2, 3.5)
    # Trained under another lock that gives the same, which the runtime has confirmed.
    other = {**WHOLE, "lock_sha256": "sha256:0", "finished_locks": [OWN.removeprefix("sha256:")]}
    assert found(trial, study, other).status == outcome.FINISHED


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "", None, 5, ["x"], "x" + OWN])
def test_a_study_ignores_results_of_another_lock(digest: object, trial: Compiled, study: Study) -> None:
    ended = found(trial, study, {**WHOLE, "lock_sha256": digest})
    assert (ended.status, ended.metric) == (outcome.OPEN, None)
    Path(trial.files.output, "epochs.json").write_text(json.dumps({**WHOLE, "lock_sha256": digest}))
    assert found(trial, study, WHOLE).metric == 0.75


def test_a_trial_of_an_array_is_finished_without_a_lock_in_its_folder(trial: Compiled, study: Study) -> None:
    os.unlink(os.path.join(trial.files.folder, "lock.yaml"))
    assert found(trial, study, {**WHOLE, "lock_sha256": "sha256:0"}).status == outcome.FINISHED


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[]",
        "5",
        {**WHOLE, "epochs": 5},
        {**WHOLE, "epochs": [5]},
        {**WHOLE, "epochs": {"epoch": 1}},
        {**WHOLE, "epochs": [{"val_dice": 1}]},
        {**WHOLE, "epochs": [{"epoch": "1", "val_dice": 1}]},
        {**WHOLE, "epochs": [{"epoch": 1, "val_dice": 10**400}]},
        {**WHOLE, "wall_seconds": "\x1b]0;title\x07"},
        {**WHOLE, "wall_seconds": 10**400},
        json.dumps(WHOLE).replace("0.75", "9" * 5000),
    ],
    ids=lambda content: str(content)[:40],
)
def test_a_study_ignores_results_of_another_format(content: object, trial: Compiled, study: Study) -> None:
    ended = found(trial, study, content)
    assert (ended.status, ended.metric) == (outcome.OPEN, None)
    outcome.as_csv(study, [])


@pytest.mark.parametrize("kind", ["fifo", "device", "link", "folder"])
def test_a_study_ignores_results_that_are_no_regular_file(
    kind: str, trial: Compiled, study: Study, tmp_path: Path
) -> None:
    path, other = Path(trial.files.output, "results.json"), tmp_path / "other.json"
    other.write_text(json.dumps(WHOLE))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else other)
    assert trials.result(trial, study).metric is None


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_study_does_not_write_through_links(kind: str, trial: Compiled, tmp_path: Path) -> None:
    """What a repository holds below its output folders may lead to a file of the user's."""
    mine = tmp_path / "mine"
    mine.write_text("kept")
    for path in (tmp_path / "study/.running", Path(trial.files.log)):
        os.mkfifo(path) if kind == "fifo" else path.symlink_to(mine)
    with pytest.raises(OSError, match=r"symbolic links|No such device"), trials.alone_in(str(tmp_path / "study")):
        pass
    with pytest.raises(OSError, match=r"symbolic links|No such device"):
        trial.files.start("python3", {})
    assert mine.read_text() == "kept"
