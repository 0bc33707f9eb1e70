"""The nodes' health in the scripts of jobs: only a valid number of a bad node excludes that node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.script_jobs import HOSTS, ONE, TWO, Job, make

#: In place of Python: the check of health leaves word and fails.
UNHEALTHY = """\
#!/bin/bash
printf '%s\\n' "$*" >>"$NOTES/calls"
case "$*" in *--health*)
  printf '%s' "$RATC_HEALTH_KEY" >"$NOTES/key"
  printf '{word}' >"$RAT_OUTPUT_DIR/UNHEALTHY"
  exit 1 ;;
esac
"""
#: Slurm's answers, and what it is asked to do.
SCONTROL = """\
#!/bin/bash
case "$*" in
  *hostnames*) echo {hosts} | tr ' ' '\\n' ;;
  "show job"*) echo "   ReqNodeList=(null) ExcNodeList={excluded}" ;;
  *) echo "$*" >>"$NOTES/scontrol" ;;
esac
"""
BSUB = '#!/bin/bash\necho "$*" >"$NOTES/bsub"; cat >"$NOTES/copy.lsf"; env >"$NOTES/bsub.env"\n'


def job(
    folder: Path, target: str, word: str, hosts: tuple[str, ...] = HOSTS, excluded: str = "(null)", **changes: Any
) -> Job:
    """A job whose nodes do not pass."""
    shape = TWO if len(hosts) == 2 else ONE
    made = make(folder, target, hosts, **{**shape, "resources__health_check": "always", **changes})
    made.stub("python3", UNHEALTHY.replace("{word}", word))
    made.stub("scontrol", SCONTROL.replace("{hosts}", " ".join(hosts)).replace("{excluded}", excluded))
    made.stub("bsub", BSUB)
    made.stub("blaunch", '#!/bin/bash\nwhile [ "$1" != env ]; do shift; done\nexec "$@"\n')
    return made


@pytest.mark.parametrize(
    ("word", "excluded", "wanted"),
    [
        ("1\\n", "(null)", "127.0.0.1"),
        ("0\\n1\\n", "n[7-9]", "n[7-9],localhost,127.0.0.1"),
        # Only numbers of nodes that the job has count.
        ("1\\nn5\\n2\\n-1\\n08\\n$(touch here)\\n", "(null)", "127.0.0.1"),
    ],
)
def test_slurm_job_is_requeued_with_the_bad_nodes_excluded(
    tmp_path: Path, word: str, excluded: str, wanted: str
) -> None:
    made = job(tmp_path / "job", "slurm", word, excluded=excluded)
    done = made.run()
    assert done.returncode == 0, done.stderr
    assert (made.notes / "scontrol").read_text().splitlines() == [
        "requeue 70",
        f"update JobId=70 ExcNodeList={wanted}",
    ]
    assert len((made.notes / "key").read_text()) == 32
    assert not list(tmp_path.rglob("here"))
    assert "ratc_runtime.train" not in (made.notes / "calls").read_text()


def test_excluded_single_node_has_its_slurm_name(tmp_path: Path) -> None:
    made = job(tmp_path / "job", "slurm", "0\\n", ("gpu17",))
    assert made.run().returncode == 0
    assert "ExcNodeList=gpu17" in (made.notes / "scontrol").read_text()


@pytest.mark.parametrize("reason", ["never", "restarts", "cancelled"])
def test_slurm_job_that_may_not_restart_is_not_requeued(tmp_path: Path, reason: str) -> None:
    changes = {"checkpoint__requeue": "never"} if reason == "never" else {"checkpoint__max_restarts": 1}
    made = job(tmp_path / "job", "slurm", "1\\n", **changes)
    if reason == "cancelled":
        made.stub("squeue", "#!/bin/sh\necho CANCELLED\n")
    done = made.run(SLURM_RESTART_COUNT="1" if reason == "restarts" else "0")
    assert done.returncode == 75
    assert not (made.notes / "scontrol").exists()
    assert "submit the job again with --exclude=127.0.0.1" in done.stdout


def test_slurm_job_names_the_bad_node_if_it_is_not_requeued(tmp_path: Path) -> None:
    made = job(tmp_path / "job", "slurm", "1\\n")
    text = (made.bin / "scontrol").read_text().replace('  *) echo "$*"', '  requeue*) exit 1 ;;\n  *) echo "$*"')
    made.stub("scontrol", text)
    made.stub("sleep", "#!/bin/sh\n")
    done = made.run()
    assert done.returncode == 75
    assert not (made.notes / "scontrol").exists()
    assert "submit the job again with --exclude=127.0.0.1" in done.stdout


@pytest.mark.parametrize("word", ["", "7\\n"])
def test_health_check_without_a_valid_node_number_fails_the_job(tmp_path: Path, word: str) -> None:
    made = job(tmp_path / "job", "slurm", word)
    assert made.run().returncode == 1
    assert not (made.notes / "scontrol").exists()


def test_lsf_job_is_resubmitted_with_the_bad_host_excluded(tmp_path: Path) -> None:
    made = job(tmp_path / "job", "lsf", "1\\n")
    original = (made.folder / "job/job.lsf").read_text()
    done = made.run()
    assert done.returncode == 75, done.stderr
    line = "#BSUB -R \"select[hname!='127.0.0.1']\"\n"
    copy = (made.notes / "copy.lsf").read_text()
    assert copy.replace(line, "") == original
    assert copy.index(line) < copy.index("#BSUB -J")
    told = (made.notes / "bsub.env").read_text().splitlines()
    assert {"RATC_HEALTH_JOB=70.0", "RATC_HEALTH_OUT=127.0.0.1"} <= set(told)
    # The copy's own start finds another one.
    made.stub("python3", UNHEALTHY.replace("{word}", "0\\n"))
    made.run("71", RATC_HEALTH_JOB="70.0", RATC_HEALTH_OUT="127.0.0.1")
    copy = (made.notes / "copy.lsf").read_text()
    hosts = ("127.0.0.1", "localhost")
    assert [line for line in copy.splitlines() if line.startswith('#BSUB -R "select[hname')] == [
        f"#BSUB -R \"select[hname!='{host}']\"" for host in hosts
    ]
    assert "RATC_HEALTH_JOB=70.0" in (made.notes / "bsub.env").read_text()


def test_lsf_job_names_the_bad_host_if_resubmission_fails(tmp_path: Path) -> None:
    made = job(tmp_path / "job", "lsf", "1\\n")
    made.stub("bsub", "#!/bin/sh\nexit 1\n")
    done = made.run()
    assert done.returncode == 75
    assert "submit the job again without 127.0.0.1" in done.stdout


def test_local_run_checks_the_health_of_its_machine(tmp_path: Path) -> None:
    made = make(tmp_path / "job", "local", **ONE, resources__health_check="always")
    made.stub("python3", UNHEALTHY.replace('>"$RAT_OUTPUT_DIR/UNHEALTHY"', ""))
    assert made.run().returncode == 1
    calls = (made.notes / "calls").read_text()
    assert "--health" in calls
    assert "ratc_runtime.train" not in calls
