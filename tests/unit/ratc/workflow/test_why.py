"""`ratc why` finds a run by its folder or job, and reads its logs, results and records; jobs of a real Slurm are in
`tests/cluster/slurm/test_why.py`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from ratc.cli import main
from ratc.workflow import why as module
from ratc.workflow.why import Asked, why
from tests.helpers.fake_schedulers import Place
from tests.unit.ratc.workflow.test_submit import BJOBS, BSUB, LSID, SBATCH, SCONTROL

SHOW = """\
JobId=5 JobName=demo
   JobState={} Reason=NonZeroExitCode
   ExitCode={}
   RunTime=00:00:26 TimeLimit=01:00:00
   WorkDir={}
"""
SAYS = "2026-11-28 13:53:12 ratc: job 5.1 on n1; logs of the nodes: {}/logs/5.1-node*.log\n"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Job 5 of Slurm, submitted, started twice and failed, with its logs where RAT_OUTPUT_DIR had moved them."""
    place = Place(tmp_path, sbatch=SBATCH, scontrol=SCONTROL)
    assert place.submit()[0] == 0
    logs = place.folder / "moved/logs"
    logs.mkdir(parents=True)
    (logs / "5.0-node0.log").write_text("error[R510]: of the first start\n")
    (logs / "5.1-node0.log").write_text("all is well\n")
    (logs / "5.1-node10.log").write_text("and here\n")
    (logs / "5.1-node2.log").write_text("step 1\nerror[R506]: x.png cannot be loaded\n  help: repair it\n")
    (place.folder / "demo-5.out").write_text(SAYS.format(place.folder / "moved"))
    place.state(SHOW.format("FAILED", "1:0", place.folder))
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("PATH", str(place.fakes))
    return place


@pytest.mark.parametrize(
    "what", [".", "spec.yaml", "compiled", "compiled/demo/slurm", "5", "compiled/demo/slurm/lock.yaml"]
)
def test_run_is_found_by_job_folder_spec_or_lock(job: Place, what: str) -> None:
    told = why(Asked(what))
    [cause] = told.found
    assert (cause.code, cause.span and cause.span.place) == ("R506", "moved/logs/5.1-node2.log:2:1")
    assert cause.helps[0] == "repair it"
    assert cause.helps[1].startswith("it is about spec.yaml:2:18: `data.data_dir`")
    assert "job 5 is FAILED (NonZeroExitCode), exit status 1, after 26 s of 1 h" in cause.notes[-1]
    assert told.about == "job 5 of compiled/demo/slurm/lock.yaml, with its results in moved"


def test_run_of_another_spec_in_the_folder_is_not_used(job: Place) -> None:
    text = Path("spec.yaml").read_text()
    Path("other.yaml").write_text(text.replace("experiment_name: demo", "experiment_name: other"))
    told = why(Asked("other.yaml"))
    assert [(one.code, one.message) for one in told.found] == [
        ("R001", "`other.yaml` was not compiled into `./compiled`")
    ]
    assert main(["compile", "other.yaml", "--target", "slurm"]) == 0
    assert "compiled/demo/slurm" in why(Asked("spec.yaml")).about
    assert "compiled/other/slurm" in why(Asked("other.yaml")).about


def test_job_without_a_record_is_found_through_the_scheduler(
    job: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job.artifacts / ".submitted/jobs.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert [cause.code for cause in why(Asked("5")).found] == ["R506"]
    assert why(Asked("5")).found[0].span.place == "work here/moved/logs/5.1-node2.log:2:1"  # type: ignore[union-attr]
    (job.folder / "demo-5.out").unlink()
    assert [cause.code for cause in why(Asked("5")).found] == ["R612"]


def test_unknown_job_is_reported(job: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (job.fakes / "state").unlink()
    assert [cause.code for cause in why(Asked("5")).found] == ["R612"]


def test_run_is_found_by_its_output_folder(job: Place) -> None:
    output = job.folder / "outputs/demo"
    output.mkdir(parents=True)
    (output / "DONE").write_text(sha256((job.artifacts / "lock.yaml").read_bytes()).hexdigest() + "\n")
    (job.folder / "demo-5.out").unlink()
    told = why(Asked("outputs/demo"))
    assert (told.found[0].code, told.about.endswith("in outputs/demo")) == ("R600", True)


@pytest.mark.parametrize("place", ["tracking/40b5", "tracking/mlartifacts/1/a/artifacts"])
def test_a_copy_of_the_lock_in_an_output_folder_is_not_the_run_s(job: Place, place: str) -> None:
    """The lock is handed to MLflow, and beside TensorBoard's files lies one."""
    output = job.folder / "outputs/demo"
    (output / "logs").mkdir(parents=True)
    (output / place).mkdir(parents=True)
    shutil.copy(job.artifacts / "lock.yaml", output / place)
    (job.folder / "demo-5.out").unlink()
    (output / "logs/5.0-node0.log").write_text("error[R506]: train7 cannot be loaded\n")
    told = why(Asked("outputs/demo"))
    assert (told.found[0].code, told.about.endswith("in outputs/demo")) == ("R506", True)
    assert any("spec.yaml:" in text for text in told.found[0].helps)


@pytest.mark.parametrize("what", ["nowhere", "moved"])
def test_path_that_is_no_run_is_refused(job: Place, what: str) -> None:
    [found] = why(Asked(what)).found
    assert found.code in ("R001", "R422")


def test_search_is_limited_to_the_run_and_compiled_folders(job: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all that lies beside the folders above, which may be a home or a scratch space."""
    walk, seen = os.walk, []
    monkeypatch.setattr(os, "walk", lambda start, **options: seen.append(Path(start).name) or walk(start, **options))
    why(Asked("moved"))
    assert set(seen) == {"moved", "compiled"}


def test_line_numbers_are_right_if_only_the_end_of_a_log_is_read(job: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 400)
    path = job.folder / "moved/logs/5.1-node2.log"
    path.write_text("step\n" * 5000 + "error[R506]: x.png cannot be loaded\n")
    [cause] = why(Asked(".")).found
    assert cause.span is not None
    assert cause.span.place == "moved/logs/5.1-node2.log:5001:1"


def test_colours_of_a_log_do_not_hide_the_cause(job: Place) -> None:
    path = job.folder / "moved/logs/5.1-node2.log"
    path.write_text(
        "\x1b[32mstep 1\x1b[0m\n\x1b[1;35mModuleNotFoundError\x1b[0m: \x1b[35mNo module named 'foo'\x1b[0m\n"
    )
    [cause] = why(Asked(".")).found
    assert (cause.code, cause.span and cause.span.line) == ("R605", 2)
    assert cause.message.startswith("`foo`")


def test_a_progress_bar_does_not_hide_the_line_behind_it(job: Place) -> None:
    path = job.folder / "moved/logs/5.1-node2.log"
    path.write_bytes(b"\r 10%|#\r 20%|##\rModuleNotFoundError: No module named 'foo'\nstep 2\r\nlast\r")
    [cause] = why(Asked(".")).found
    assert (cause.code, cause.span and cause.span.line) == ("R605", 1)


def test_a_finished_job_is_no_failure_after_the_spec_was_compiled_again(job: Place) -> None:
    for path in (job.folder / "moved/logs").iterdir():
        path.write_text("step 1\n")
    (job.folder / "moved/DONE").write_text("the digest of another lock\n")
    job.state(SHOW.format("COMPLETED", "0:0", job.folder))
    [cause] = why(Asked("5")).found
    assert (cause.code, cause.message) == ("R600", "job 5 ended without an error")


def test_cause_is_found_in_a_given_log(job: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (job.folder / "moved/logs").iterdir():
        path.unlink()
    (job.folder / "more.log").write_text("ModuleNotFoundError: No module named 'monai'\n")
    assert main(["why", "--log", "more.log"]) == 1
    said = capsys.readouterr()
    assert "error[R605]: `monai` does not exist on the node" in said.out
    assert "--> more.log:1:1" in said.out
    assert main(["why", "--log", "not-there.log"]) == 1
    assert "R001" in capsys.readouterr().err


def test_cause_is_written_as_json(job: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "--format", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [one["code"] for one in document["findings"]] == ["R506"]


def test_running_job_is_no_failure(job: Place, capsys: pytest.CaptureFixture[str]) -> None:
    job.state(SHOW.format("RUNNING", "0:0", job.folder))
    assert main(["why"]) == 0
    assert "job 5 is running" in capsys.readouterr().out


def test_cause_is_found_without_an_answer_of_the_scheduler(job: Place) -> None:
    job.program("scontrol", "sleep 60\n")
    [cause] = why(Asked(".", timeout=0.2)).found
    assert cause.code == "R506"
    assert not any("account" in note for note in cause.notes)


def test_malformed_files_of_a_run_do_not_hide_the_cause(job: Place) -> None:
    output = job.folder / "moved"
    for name in ("results.json", "epochs.json", "STOPPED", "DONE"):
        (output / name).write_bytes(b"\xff[1, {")
    os.mkfifo(output / "logs/5.1-node3.log")
    (output / "logs/5.1-node4.log").mkdir()
    assert [cause.code for cause in why(Asked(".")).found] == ["R506"]
    (output / "epochs.json").write_text('{"epochs": [1, null, {"seconds": "x"}]}')
    (output / "results.json").write_text("[]")
    assert [cause.code for cause in why(Asked(".")).found] == ["R506"]


def test_cause_of_an_lsf_memory_kill_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, bsub=BSUB, bjobs=BJOBS, lsid=LSID)
    status, _, said = place.submit("--target", "lsf")
    assert status == 0, said
    reason = "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit"
    place.state(f"77|0|EXIT|137|{reason}|n1|20 second(s)|60.0|1 Gbytes|1 Gbytes|{place.folder}\n")
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("PATH", str(place.fakes))
    [cause] = why(Asked("77")).found
    assert cause.code == "R602"
    assert cause.helps[0] == "ask for `2GB` in `resources.memory`"


ARRAY = """\
JobId=6 ArrayJobId=5 ArrayTaskId=2 JobName=demo
   JobState=TIMEOUT Reason=TimeLimit
   ExitCode=0:15
   RunTime=01:00:02 TimeLimit=01:00:00

JobId=5 ArrayJobId=5 ArrayTaskId=1 JobName=demo
   JobState=COMPLETED Reason=None
   ExitCode=0:0
   RunTime=00:20:00 TimeLimit=01:00:00
"""


def test_failed_task_of_an_array_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, sbatch=SBATCH, scontrol=SCONTROL)
    place.spec(more="sweep: {list: [{seed: 1}, {seed: 2}]}\n")
    status, _, said = place.submit()
    assert status == 0, said
    place.state(ARRAY)
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("PATH", str(place.fakes))
    names = [line.split("\t")[0] for line in (place.artifacts / "points.tsv").read_text().splitlines()[1:]]
    told = why(Asked("5"))
    assert told.found[0].code == "R601"
    assert told.about.startswith(f"job 5_2 of compiled/demo/slurm/points/{names[1]}/lock.yaml")
    assert why(Asked("5_1")).about.startswith(f"job 5_1 of compiled/demo/slurm/points/{names[0]}/lock.yaml")


def test_custom_code_of_a_spec_is_not_run(job: Place) -> None:
    (job.folder / "evil.py").write_text("open('ran', 'w')\n")
    job.spec(more="model: {name: 'evil:net'}\n")
    assert why(Asked(".")).found
    assert not (job.folder / "ran").exists()
    assert "evil" not in sys.modules
