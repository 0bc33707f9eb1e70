"""`ratc submit` with stand-ins for schedulers that refuse, hang, print extra text or forget a job.

What a real Slurm does with it is in `tests/cluster/slurm/test_submit.py`; LSF cannot be had here.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from ratc.compiled import finished
from ratc.targets.artifact import Artifact
from tests.effort import HANGS_S
from tests.helpers.fake_schedulers import SHOW, Place

CONFIG = "echo 'ClusterName             = fake'\n"
#: Says the cluster's name, and of a job what the file `state` holds.
SCONTROL = f"""\
if [ "$2" = config ]; then {CONFIG}exit; fi
[ -e "$HERE/state" ] && cat "$HERE/state" && exit
echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1
"""
#: Keeps what it was given, and says job 5.
SBATCH = """\
for last; do :; done
echo "$*" >>"$HERE/calls"; cp "$last" "$HERE/script"; pwd >"$HERE/cwd"; env >"$HERE/env"
echo 5
"""
BSUB = """\
cat >"$HERE/script"; pwd >"$HERE/cwd"; printf '%s\\n' "$@" >>"$HERE/calls"
echo 'Job <77> is submitted to queue <normal>.'
"""
BJOBS = '[ -e "$HERE/state" ] && cat "$HERE/state" && exit; echo "Job <77> is not found" >&2; exit 255\n'
LSID = "echo 'IBM Spectrum LSF 10.1.0.13'; echo 'My cluster name is blue'; echo 'My master name is head'\n"


@pytest.fixture
def slurm(tmp_path: Path) -> Place:
    return Place(tmp_path, sbatch=SBATCH, scontrol=SCONTROL)


@pytest.fixture
def lsf(tmp_path: Path) -> Place:
    return Place(tmp_path, bsub=BSUB, bjobs=BJOBS, lsid=LSID)


def test_submit_prints_the_job_number_and_submits_the_compiled_script(slurm: Place) -> None:
    status, out, err = slurm.submit()
    assert (status, out) == (0, "5\n"), err
    assert (slurm.fakes / "script").read_bytes() == (slurm.artifacts / "job.sbatch").read_bytes()
    assert (slurm.fakes / "cwd").read_text().strip() == str(slurm.folder)
    assert slurm.calls() == [f"--parsable {slurm.artifacts}/job.sbatch"]
    assert "walltime:   1 h" in err
    entry = slurm.record()[0]
    assert entry["lock"] == "sha256:" + sha256((slurm.artifacts / "lock.yaml").read_bytes()).hexdigest()
    assert (entry["job"], entry["scheduler"], entry["cluster"]) == ("5", "slurm", "fake")


def test_dry_run_lists_the_files_and_submits_nothing(slurm: Place) -> None:
    status, out, err = slurm.submit("--dry-run")
    assert (status, out) == (0, "")
    assert "would write: " in err
    assert "would submit: compiled/demo/slurm/job.sbatch\n" in err
    assert not slurm.calls()
    assert not slurm.artifacts.exists()


def test_custom_command_of_an_untrusted_folder_is_not_submitted(slurm: Place, tmp_path: Path) -> None:
    slurm.spec(more="entrypoint: {command: [bash, run.sh]}\n")
    untrusted = {"RATC_TRUST": "", "RATC_CONFIG": str(tmp_path)}
    assert "`bash run.sh`" in slurm.refused("R447", **untrusted)
    assert not slurm.calls()
    assert not slurm.artifacts.exists()
    assert slurm.submit("--trust", **untrusted)[0] == 0


def test_submission_record_is_ignored_by_git_and_check(slurm: Place) -> None:
    assert slurm.submit()[0] == 0
    subprocess.run(["git", "init", "-q"], cwd=slurm.folder, check=True)
    listed = subprocess.run(
        ["git", "status", "--short", "-uall"], cwd=slurm.folder, capture_output=True, text=True, check=True
    )
    assert "lock.yaml" in listed.stdout
    assert ".submitted" not in listed.stdout
    command = [sys.executable, "-m", "ratc", "compile", "spec.yaml", "--target", "slurm", "--check"]
    assert subprocess.run(command, cwd=slurm.folder, env=slurm.environment(), check=False).returncode == 0


def test_submit_without_a_scheduler_writes_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)
    err = place.refused("R410")
    assert "no `sbatch` on PATH" in err
    assert "no `bsub` on PATH" in err
    assert "ratc train SPEC" in err
    place.refused("R410", "--target", "lsf")
    assert "`ratc train SPEC`" in place.refused("R410", "--target", "local")
    place.refused("R410", "--dry-run")
    place.spec(more="experiment: typo\n")
    status, _, err = place.submit()
    assert status == 1
    assert "error[R410]" in err
    assert "unknown key `experiment`" in err, "mistakes of the spec are said in the same run"
    place.spec()
    assert not (place.folder / "compiled").exists()
    for target, script in (("slurm", "job.sbatch"), ("lsf", "job.lsf"), ("local", "run.sh")):
        status, out, err = place.submit("--dry-run", "--target", target)
        assert (status, out) == (0, "")
        assert f"would write: compiled/demo/{target}/{script}\n" in err
    assert "did you mean `slurm`" in place.refused("R401", "--target", "slurn")


def test_two_schedulers_that_answer_need_a_target(tmp_path: Path) -> None:
    place = Place(tmp_path, sbatch=SBATCH, scontrol=SCONTROL, bsub=BSUB, bjobs=BJOBS, lsid=LSID)
    place.refused("R410")
    assert place.submit("--target", "lsf")[1] == "77\n"
    place.program("lsid", "echo 'ls_getclustername(): LIM is down; try later'; exit 255")
    assert place.submit()[1] == "5\n"


@pytest.mark.parametrize(("variable", "who"), [("SLURM_JOB_ID", "Slurm"), ("LSB_JOBID", "LSF")])
def test_submit_inside_a_job_is_refused(slurm: Place, variable: str, who: str) -> None:
    assert f"inside {who}'s job 9" in slurm.refused("R411", "--again", **{variable: "9"})
    assert slurm.submit("--dry-run", **{variable: "9"})[0] == 0
    assert not slurm.calls()


def test_failing_or_hanging_controller_is_reported(slurm: Place) -> None:
    slurm.program("scontrol", "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    assert "note: Unable to contact slurm controller" in slurm.refused("R413")
    slurm.program("scontrol", 'sleep 600 & echo $! >"$HERE/child"; wait')
    assert "gave no answer within 0.5 s" in slurm.refused("R413", "--timeout", "0.5")
    child = int((slurm.fakes / "child").read_text())
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
    assert not slurm.calls()


def test_refused_job_points_at_the_spec_and_is_not_recorded(slurm: Place) -> None:
    slurm.spec("num_gpus: 0, walltime: '01:00', account: nobody")
    words = "Batch job submission failed: Invalid account or account/partition combination specified"
    slurm.program("sbatch", f"echo 'sbatch: error: Site says hello' >&2; echo 'sbatch: error: {words}' >&2; exit 1")
    err = slurm.refused("R414")
    assert "the scheduler refused the job: Invalid account or account/partition" in err
    assert "--> spec.yaml:7:12" in err
    assert "Site says hello" in err
    slurm.program("sbatch", SBATCH)
    assert slurm.submit()[1] == "5\n"


@pytest.mark.parametrize(
    "trouble",
    [
        "sleep 600",
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
        "echo 'Welcome to the cluster'",
        "true",
    ],
)
def test_job_that_may_be_queued_is_not_submitted_twice(slurm: Place, trouble: str) -> None:
    slurm.program("sbatch", trouble)
    assert "squeue --me" in slurm.refused("R415", "--timeout", "2")
    slurm.program("sbatch", SBATCH)
    assert "may be in the queue already" in slurm.refused("R412")
    assert not slurm.calls()
    status, out, err = slurm.submit("--again")
    assert (status, out) == (0, "5\n"), err
    assert "warning[R412]" in err
    assert [entry["job"] for entry in slurm.record()] == ["5"]


def test_job_number_is_found_after_other_output(slurm: Place) -> None:
    slurm.program("sbatch", "echo 'You have 12 hours left'; echo '15;blue'")
    assert slurm.submit()[1] == "15\n"


@pytest.mark.parametrize("stream", ["", " >&2"])
def test_messages_of_the_site_are_shown(slurm: Place, stream: str) -> None:
    slurm.program("sbatch", f"printf 'sbatch: Your project has 12 hours left \\033[31m\\n'{stream}; echo '15;blue'")
    status, out, err = slurm.submit()
    assert (status, out) == (0, "15\n")
    assert "sbatch said: sbatch: Your project has 12 hours left" in err
    assert "\033" not in err
    assert "said: 15" not in err


def test_lock_of_a_queued_or_running_job_is_not_submitted_again(slurm: Place) -> None:
    assert slurm.submit()[0] == 0
    for state in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED"):
        slurm.state(SHOW.format(state, "0:0"))
        err = slurm.refused("R412")
        assert f"job 5 is {state}" in err
        assert "scancel 5" in err
    assert len(slurm.calls()) == 1
    status, out, err = slurm.submit("--again")
    assert (status, out) == (0, "5\n"), err
    slurm.state(SHOW.format("FAILED", "1:0"))
    status, _, err = slurm.submit()
    assert status == 0, err
    assert "as submitted last" in err
    (slurm.fakes / "state").unlink()  # forgotten
    assert slurm.submit()[0] == 0


def test_files_of_a_queued_job_are_not_overwritten(slurm: Place) -> None:
    assert slurm.submit()[0] == 0
    before = (slurm.artifacts / "lock.yaml").read_bytes()
    slurm.state(SHOW.format("PENDING", "0:0"))
    assert "needs the files" in slurm.refused("R412", "--seed", "7")
    assert (slurm.artifacts / "lock.yaml").read_bytes() == before
    assert slurm.submit("--seed", "7", "-o", "other")[0] == 0
    slurm.state(SHOW.format("CANCELLED", "0:15"))
    status, _, err = slurm.submit("--seed", "7")
    assert status == 0, err
    assert "  seed: 42 -> 7\n" in err


def test_finished_run_is_not_submitted(slurm: Place) -> None:
    assert slurm.submit()[0] == 0
    output = slurm.folder / "outputs/demo"
    output.mkdir(parents=True)
    digest = sha256((slurm.artifacts / "lock.yaml").read_bytes()).hexdigest()
    (output / "DONE").write_text(f"{digest}  -\n")  # as `sha256sum <lock.yaml` prints it
    assert "finished" in slurm.refused("R412")
    assert slurm.submit("--again")[0] == 0
    (output / "DONE").write_text(f"{'0' * 64}  -\n")
    assert slurm.submit()[0] == 0


def test_finished_points_of_an_array_are_counted(tmp_path: Path) -> None:
    shared = Artifact("lock.yaml", "lock_version: 1\n", "yaml")
    table = Artifact("points.tsv", "name\tvalues\tlock\n1\tseed=1\tx\n2\tseed=2\ty\n", "text")
    points = [Artifact(f"points/{name}/lock.yaml", f"output_dir: outputs/demo/{name}\n", "yaml") for name in ("1", "2")]
    files = [shared, table, *points]
    assert finished.count(files, str(tmp_path)) == 0
    done = tmp_path / "outputs/demo/2/DONE"
    done.parent.mkdir(parents=True)
    done.write_text(sha256((shared.text + points[1].text).encode()).hexdigest() + "  -\n")
    assert finished.count(files, str(tmp_path)) == 1


def test_concurrent_submissions_submit_one_job(slurm: Place) -> None:
    slurm.state(SHOW.format("PENDING", "0:0"))
    slurm.program("sbatch", f"sleep 2\n{SBATCH}")
    both = [slurm.start() for _ in range(2)]
    said = [(*process.communicate(timeout=HANGS_S), process.returncode) for process in both]
    assert sorted(status for *_, status in said) == [0, 1], said
    assert "error[R412]" in next(err for _, err, status in said if status)
    assert len(slurm.calls()) == 1


def test_state_of_a_job_on_another_cluster_is_unknown(slurm: Place) -> None:
    assert slurm.submit()[0] == 0
    slurm.program("scontrol", SCONTROL.replace("fake", "green"))
    assert "on the cluster fake, so its state is not known here" in slurm.refused("R412")
    assert slurm.submit("--again")[0] == 0
    assert slurm.submit()[0] == 0


def test_damaged_submission_record_is_reported(slurm: Place) -> None:
    assert slurm.submit()[0] == 0
    (slurm.artifacts / ".submitted/jobs.json").write_bytes(b'{"version": 1, \xff')
    assert "cannot be read" in slurm.refused("R412")


def test_submission_record_that_cannot_be_written_stops_the_submission(slurm: Place) -> None:
    slurm.artifacts.mkdir(parents=True)
    (slurm.artifacts / ".submitted").write_text("")
    slurm.refused("R403")
    assert not slurm.calls()


def test_invalid_spec_is_not_submitted(slurm: Place) -> None:
    slurm.spec("num_gpus: -1")
    status, out, err = slurm.submit()
    assert (status, out) == (1, "")
    assert "error[R1" in err
    assert "ratc submit: failed" in err


def test_variables_that_would_change_the_job_are_removed_with_a_warning(slurm: Place) -> None:
    variables = {"SBATCH_TIMELIMIT": "10", "SBATCH_ACCOUNT": "ours", "RAT_OUTPUT_DIR": "elsewhere", "MINE": "1"}
    status, _, err = slurm.submit(**variables)
    assert status == 0, err
    assert "warning[R418]: `SBATCH_TIMELIMIT` would change" in err
    given = (slurm.fakes / "env").read_text().splitlines()
    assert {"SBATCH_ACCOUNT=ours", "MINE=1", f"RATC_PYTHON={sys.executable}"} <= set(given)
    assert not [line for line in given if line.startswith(("SBATCH_TIMELIMIT", "RAT_OUTPUT_DIR"))]
    assert "output_dir: elsewhere" in (slurm.artifacts / "lock.yaml").read_text()


def test_sbatch_export_variable_is_removed_with_a_warning(slurm: Place) -> None:
    status, _, err = slurm.submit(SBATCH_EXPORT="NONE", MINE="1")
    assert status == 0, err
    assert "warning[R418]: `SBATCH_EXPORT` would change" in err
    given = (slurm.fakes / "env").read_text().splitlines()
    assert {"MINE=1", f"RATC_PYTHON={sys.executable}"} <= set(given)
    assert not [line for line in given if line.startswith("SBATCH_EXPORT")]


def test_spec_with_its_own_python_does_not_get_ratc_python(slurm: Place) -> None:
    slurm.spec(more="environment: {venv: .venv}\n")
    assert slurm.submit()[0] == 0
    assert "RATC_PYTHON=" not in (slurm.fakes / "env").read_text()


def test_after_option_sets_the_dependencies_of_the_job(slurm: Place) -> None:
    slurm.state(SHOW.format("RUNNING", "0:0"))
    assert slurm.submit("--after", "3", "--after", "4_1")[0] == 0
    assert "--dependency=afterok:3:4_1 --kill-on-invalid-dep=yes" in slurm.calls()[0]
    (slurm.fakes / "state").unlink()
    assert "warning[R419]: Slurm knows no job 3" in slurm.submit("--after", "3")[2]
    for wrong in ("x", "3:4", "3,afterany:4", ""):
        assert slurm.submit("--after", wrong)[0] == 2


def test_live_check_reports_a_refusal_before_submitting(slurm: Place) -> None:
    test_only = 'case "$*" in *--test-only*) {} ;; esac\n'
    refuses = "echo 'allocation failure: Requested time limit is invalid (missing or exceeds some limit)' >&2; exit 1"
    slurm.program("sbatch", test_only.format(refuses) + SBATCH)
    err = slurm.refused("R414", "--live-check")
    assert "would refuse the job: Requested time limit is invalid" in err
    assert re.search(r"--> spec.yaml:7:13\n", err)
    assert not slurm.calls()
    slurm.program("sbatch", test_only.format("echo 'sbatch: Job 4 to start at noon' >&2; exit") + SBATCH)
    status, out, err = slurm.submit("--live-check")
    assert (status, out) == (0, "5\n")
    assert "Job 4 to start at noon" in err
    slurm.program("sbatch", test_only.format("sleep 600") + SBATCH)
    slurm.refused("R413", "--live-check", "--timeout", "1")


def test_wait_returns_the_status_of_the_job(slurm: Place) -> None:
    slurm.state(SHOW.format("FAILED", "3:0"))
    status, out, err = slurm.submit("--wait")
    assert (status, out) == (3, "5\n"), err
    slurm.state(SHOW.format("CANCELLED", "0:15"))
    assert slurm.submit("--wait")[0] == 143
    slurm.state(SHOW.format("COMPLETED", "0:0") + "\n" + SHOW.format("FAILED", "75:0").replace("=5", "=6", 1))
    assert slurm.submit("--wait")[0] == 75
    slurm.state(SHOW.format("COMPLETED", "0:0"))
    assert slurm.submit("--wait")[0] == 0


def test_wait_reports_a_job_that_the_scheduler_forgot(slurm: Place) -> None:
    assert "no longer knows it" in slurm.submit("--wait")[2]


def test_interrupted_wait_does_not_cancel_the_job(slurm: Place) -> None:
    slurm.state(SHOW.format("RUNNING", "0:0"))
    process = slurm.start("--wait")
    assert process.stdout
    assert process.stdout.readline() == "5\n"
    assert process.stderr
    while "job 5: RUNNING" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANGS_S)
    assert process.returncode == 130
    assert "job 5 goes on" in err


def test_interrupt_during_submission_still_records_the_job(slurm: Place) -> None:
    slurm.program("sbatch", f'touch "$HERE/under way"; sleep 2\n{SBATCH}')
    process = slurm.start()
    while not (slurm.fakes / "under way").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANGS_S)
    assert (process.returncode, out) == (0, "5\n"), err
    assert [entry["job"] for entry in slurm.record()] == ["5"]


def test_lsf_reads_the_script_from_standard_input(lsf: Place) -> None:
    status, out, err = lsf.submit("--live-check")
    assert (status, out) == (0, "77\n"), err
    assert "warning[R417]" in err
    assert (lsf.fakes / "script").read_bytes() == (lsf.folder / "compiled/demo/lsf/job.lsf").read_bytes()
    assert (lsf.fakes / "cwd").read_text().strip() == str(lsf.folder)
    lsf.state("77 0 PEND -\n")
    err = lsf.refused("R412")
    assert "job 77 is PEND" in err
    assert "bkill 77" in err
    (lsf.fakes / "state").unlink()  # forgotten
    assert "warning[R419]" in lsf.submit("--after", "3", "--after", "4[2]")[2]
    assert lsf.calls()[-2:] == ["-w", "done(3) && done(4[2])"]


def test_wait_returns_the_status_of_an_lsf_job(lsf: Place) -> None:
    lsf.state("77 1 DONE -\n77 2 EXIT 3\n")
    assert lsf.submit("--wait")[0] == 3
    lsf.state("77 0 DONE -\n")
    assert lsf.submit("--wait")[0] == 0
    lsf.state("LSF is down. Please wait ...\n")
    lsf.refused("R413")


def test_refusal_of_lsf_points_at_the_spec(lsf: Place) -> None:
    lsf.spec("num_gpus: 0, walltime: '01:00', queue: nope")
    lsf.program("bsub", "cat >/dev/null; echo 'nope: No such queue. Job not submitted.' >&2; exit 255")
    assert "--> spec.yaml:7:10" in lsf.refused("R414")
