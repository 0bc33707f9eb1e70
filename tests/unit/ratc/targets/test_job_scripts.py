"""Emitted scripts with a stand-in for the scheduler: exit statuses, ports, temporary files and restarts."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import jobs
from tests.helpers.script_jobs import HOSTS, ONE, PYTHON, SCRIPT, TWO, Job, make, read

SWEEP = {"points": {"a": {"seed": 1}, "b": {"seed": 2}}}
STUDY = {"backend": "ray", "search_space": {"learning_rate": {"choices": [1e-3, 1e-2]}}, "metric": "loss"}


# ---------------------------------------------------------------------- whose word counts


def digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def results_text(lock: str, **changes: Any) -> str:
    content = {"status": "finished", "finished_locks": [lock], "lock_sha256": f"sha256:{lock}", "test": {"dice": 1.0}}
    return json.dumps({**content, **changes}, indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize("target", ["slurm", "lsf"])
@pytest.mark.parametrize("kind", ["run", "array", "study"])
def test_status_0_of_the_launcher_needs_finished_results_of_this_lock(target: str, kind: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"run": {}, "array": {"sweep": SWEEP}, "study": {"tuning": STUDY}}[kind]
    job = make(tmp_path / "project", target, **(ONE | changes))
    index = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "70", "LSB_JOBINDEX": "1"} if kind == "array" else {}
    output = job.output / "a" if kind == "array" else job.output
    shared, own = job.folder / "job/lock.yaml", job.folder / "job/points/a/lock.yaml"
    lock = digest(shared, own) if kind == "array" else digest(shared)
    word = output / ("study/study.json" if kind == "study" else "results.json")
    word.parent.mkdir(parents=True)

    submissions = itertools.count(71)

    def run_with_results(text: str | None) -> subprocess.CompletedProcess[str]:
        word.unlink(missing_ok=True)
        if text is not None:
            word.write_text(text)
        return job.run(str(next(submissions)), **index)

    other = "0" * 64
    wrong = [None, "", "{", results_text(other), results_text(lock)[:-10], "null\n"]
    if kind == "study":
        wrong.append(json.dumps({"trials": [{"status": "finished"}], "finished_locks": []}))
    else:
        wrong.append(results_text(lock, status="stopped", finished_locks=[]))
    if kind == "array":
        # The point's file is the same; what all points share is another.
        wrong.append(results_text(other, lock_sha256=f"sha256:{digest(own)}"))
    for text in wrong:
        done = run_with_results(text)
        assert done.returncode not in (0, 75, 99), (text, done.stdout)
        assert "error[R561]" in done.stderr, (text, done.stderr)
        assert "finished" not in done.stdout
        assert not (output / "DONE").exists()
    done = run_with_results(results_text(lock))
    assert done.returncode == 0, done.stderr
    assert f"finished: {word}" in done.stdout
    assert (output / "DONE").read_text().split()[0] == lock
    calls = (job.notes / "calls").read_text()
    # Again: nothing is run; and DONE alone, of somebody else's hand, says nothing.
    assert "finished before" in job.run(**index).stdout
    assert (job.notes / "calls").read_text() == calls
    assert run_with_results(None).returncode == 1
    assert (job.notes / "calls").read_text() != calls
    assert not (output / "DONE").exists()


def test_results_of_an_earlier_run_do_not_finish_a_fresh_start(tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", checkpoint__resume="never", **ONE)
    job.output.mkdir(parents=True)
    (job.output / "results.json").write_text(results_text(digest(job.folder / "job/lock.yaml")))
    done = job.run()
    assert done.returncode == 1, done.stdout
    assert "error[R561]" in done.stderr
    assert (job.output / "results.previous.json").exists()


def test_results_written_by_the_runtime_finish_the_job(tmp_path: Path) -> None:
    """What `ratc_runtime` writes at the end of a run, and for a lock that asks for the same again."""
    from ratc_runtime.config.lock import lock_digest
    from ratc_runtime.output.results import confirm, write_results

    job = make(tmp_path / "project", "slurm", sweep=SWEEP, **ONE)
    lock = job.folder / "job/points/a/lock.yaml"
    output = job.output / "a"
    output.mkdir(parents=True)
    write_results(output, {"status": "finished", "finished_locks": ["0" * 64], "test": {"dice": 1.0}})
    index = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "70"}
    assert job.run(**index).returncode == 1
    confirm(output, lock_digest(lock))
    assert job.run(**index).returncode == 0


#: In place of `touch`, on a disk that is full.
NO_STOP = '#!/bin/bash\ncase "$*" in *STOP) exit 1 ;; esac\nexec /usr/bin/touch "$@"\n'
LAUNCHER = """\
#!/bin/bash
case "$*" in *ratc_runtime.train*) {body} ;; esac
"""


@pytest.mark.parametrize("changes", [ONE, {"training__batch_size": 4}], ids=["alone", "accelerate"])
@pytest.mark.parametrize(
    ("body", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_local_script_returns_the_status_of_its_launcher(
    body: str, status: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    job = make(tmp_path / "project", "local", **changes)
    job.stub("python3", LAUNCHER.format(body=body))
    assert job.run().returncode == status


@pytest.mark.parametrize("writable", [True, False])
def test_signal_does_not_change_the_status_of_a_local_script(writable: bool, tmp_path: Path) -> None:
    """Nor does a stop file that cannot be written end it before its launcher."""
    job = make(tmp_path / "project", "local", **ONE)
    if not writable:
        job.stub("touch", NO_STOP)
    job.stub("python3", LAUNCHER.format(body='kill -USR2 "$PPID"; sleep 0.5; : >"$NOTES/ended"; exit 7'))
    assert job.run().returncode == 7
    assert (job.notes / "ended").exists()
    assert (job.output / "STOP").exists() == writable


def test_job_waits_for_its_nodes_if_the_stop_file_cannot_be_written(tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", **ONE)
    body = 'mkdir -p "$RAT_OUTPUT_DIR/STOP"; kill -USR2 "$(cat "$NOTES/job")"; sleep 0.5; : >"$NOTES/ended"; exit 7'
    job.stub("python3", LAUNCHER.format(body=body))
    script = job.folder / "job" / SCRIPT["slurm"]
    first, rest = script.read_text().split("\n", 1)
    script.write_text(f'{first}\necho $$ >"$NOTES/job"\n{rest}')
    job.stub("touch", NO_STOP)
    assert job.run().returncode == 7
    assert (job.notes / "ended").exists()


#: A command of Slurm. The controller does not answer the first `silent` calls, and later ones are noted.
SILENT = """\
#!/bin/bash
echo >>"$NOTES/{name}-asked"
[ "$(wc -l <"$NOTES/{name}-asked")" -gt {silent} ] || {{ echo "Socket timed out on send/recv operation" >&2; exit 1; }}
echo "$*" >>"$NOTES/{name}"
echo RUNNING
"""


@pytest.mark.parametrize(("name", "silent"), [("squeue", 2), ("scontrol", 2), ("squeue", 99), ("scontrol", 99)])
def test_stopped_job_is_requeued_although_the_controller_is_busy(name: str, silent: int, tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", **ONE)
    for program in ("squeue", "scontrol"):
        job.stub(program, SILENT.format(name=program, silent=silent if program == name else 0))
    job.stub("sleep", "#!/bin/sh\n")
    job.stub("python3", LAUNCHER.format(body='echo SIGTERM >"$RAT_OUTPUT_DIR/STOPPED"'))
    done = job.run()
    noted = job.notes / "scontrol"
    requeued = noted.exists() and "requeue 70" in noted.read_text()
    assert requeued == (silent == 2), done.stdout
    assert done.returncode == (0 if requeued else 75), done.stderr
    assert ("submit the job again to go on" in done.stdout) != requeued


def test_requeue_that_is_answered_too_late_counts(tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", **ONE)
    job.stub("scontrol", '#!/bin/sh\ncase "$*" in requeue*) touch "$NOTES/requeued"; exit 1;; esac\n')
    job.stub("squeue", '#!/bin/sh\nif [ -e "$NOTES/requeued" ]; then echo PENDING; else echo RUNNING; fi\n')
    job.stub("sleep", "#!/bin/sh\n")
    job.stub("python3", LAUNCHER.format(body='echo SIGTERM >"$RAT_OUTPUT_DIR/STOPPED"'))
    done = job.run()
    assert done.returncode == 0, done.stdout
    assert "submit the job again" not in done.stdout


# ---------------------------------------------------------------------- where the nodes meet


def port_of(job: Job, number: str, **variables: str) -> int:
    """The port that a start gives its launchers."""
    (job.notes / "calls").unlink(missing_ok=True)
    job.run(number, **variables)
    found = re.search(r"(?:rdzv-endpoint \S+:|main_process_port )(\d+)", (job.notes / "calls").read_text())
    assert found is not None
    return int(found[1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make(tmp_path_factory.mktemp("pair") / "project", "slurm", HOSTS, **TWO)


def test_jobs_with_consecutive_numbers_never_share_a_port(pair: Job) -> None:
    """Ten requeues of two jobs with consecutive numbers, and of a task of an array beside them."""
    ports = [
        port_of(pair, str(number), SLURM_RESTART_COUNT=str(restart)) for number in (4711, 4712) for restart in range(11)
    ]
    assert len(set(ports)) == len(ports)
    assert all(10_000 <= port < 29_000 for port in ports)


def test_ports_of_many_jobs_and_their_restarts_are_distinct() -> None:
    from ratc_runtime.distributed import launch_environment

    def number(job: int, restart: int, index: int = 0, lsf: bool = False) -> int:
        names = {"LSB_JOBID": str(job), "LSB_JOBINDEX": str(index)} if lsf else {"SLURM_JOB_ID": str(job)}
        return launch_environment._number(names, restart) % launch_environment.PORTS

    slurm = [number(job, restart) for job in range(9000, 9200) for restart in range(21)]
    assert len(set(slurm)) == len(slurm)
    lsf = [
        number(job, restart, index, lsf=True) for job in range(80, 90) for index in range(20) for restart in range(4)
    ]
    assert len(set(lsf)) == len(lsf)


def test_port_in_use_is_skipped(pair: Job) -> None:
    first = port_of(pair, "31")
    for address in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as taken:
            taken.bind((address, first))
            taken.listen()
            assert port_of(pair, "31") != first
    assert port_of(pair, "31") == first
    assert port_of(pair, "31", RATC_PORT="12345") == 12345


def test_job_fails_at_once_if_the_head_node_cannot_be_resolved(tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", ("no-such-host.invalid", "localhost"), **TWO)
    real = f'PYTHONPATH="{jobs.ROOT}/runtime" exec "{sys.executable}" "$@"'
    job.stub("python3", f'#!/bin/sh\necho "$*" >>"$NOTES/calls"\ncase "$*" in *meeting*) {real} ;; esac\n')
    done = job.run()
    assert done.returncode == 1
    assert "error[R563]: the head node no-such-host.invalid cannot be resolved on the node " in done.stdout
    assert "ratc_runtime.train" not in (job.notes / "calls").read_text()


# ---------------------------------------------------------------------- what is left behind, and what is handed on


@pytest.mark.parametrize("target", ["slurm", "lsf"])
def test_each_start_has_its_own_temporary_folder_that_is_removed(target: str, tmp_path: Path) -> None:
    job = make(tmp_path / "project", target, **ONE)
    base = tmp_path / "tmp"
    base.mkdir()
    task = "70" if target == "slurm" else "70.0"
    # Of an earlier start that was killed; of a job whose number begins alike; of another node of the same.
    gone, other, sibling = (base / f"ratc-{name}.abcdef" for name in (f"{task}.0-n0", "700.0-n0", f"{task}.0-n1"))
    for folder in (gone, other, sibling):
        (folder / "deep").mkdir(parents=True)
    job.run(TMPDIR=str(base), SLURM_RESTART_COUNT="1")
    (used,) = (job.notes / "tmp").read_text().split()
    assert Path(used).parent == base
    assert set(base.iterdir()) == {other, sibling}
    # A folder of the submitting machine that is not here.
    job.run(TMPDIR=str(tmp_path / "nowhere"))
    assert Path((job.notes / "tmp").read_text().split()[-1]).parent == Path("/tmp")


def test_secrets_tracker_settings_and_restart_count_reach_every_lsf_host(tmp_path: Path) -> None:
    job = make(tmp_path / "project", "lsf", HOSTS, environment__secrets=["MY_TOKEN"], **TWO)
    token = "se'cret $(touch pwned)\nof two lines"
    watch = 'umask 022; stat -c %a "$RATC_GIVEN" >"$RAT_OUTPUT_DIR/mode"\n'
    # blaunch hands nothing on, so Python is given as a path, and notes where the task tells it.
    (job.bin / "python3").unlink()  # the stand-in for blaunch is itself written in Python
    python = job.bin / "noting"
    python.write_text(
        f'#!/bin/bash\nexport NOTES="{job.notes}"\n{watch}'
        'case "$*" in *ratc_runtime.train*) env -0 >"$NOTES/environment-$$" ;; esac\nexit 0\n'
    )
    python.chmod(0o755)
    shell = {"MY_TOKEN": token, "MLFLOW_TRACKING_URI": "http://tracker:5000", "RATC_PYTHON": str(python)}
    job.output.mkdir(parents=True)
    (job.output / "RESTARTS").write_text("70.0 1\n")
    done = job.run(**shell)
    found = list(job.notes.glob("environment-*"))
    assert len(found) == 2, done
    for path in found:
        given = read(path)
        assert given["MY_TOKEN"] == token
        assert given["MLFLOW_TRACKING_URI"] == "http://tracker:5000"
        assert given["RATC_RESTARTS"] == "2"
    assert (job.output / "mode").read_text() == "600\n"
    assert not list((job.output / "logs").glob(".*.env"))
    assert not (job.folder / "pwned").exists()


def test_restart_count_of_lsf_is_read_by_the_runtime() -> None:
    from ratc_runtime.distributed import launch_environment

    here = launch_environment.detect({"LSB_JOBID": "70", "LSB_JOBINDEX": "0", "RATC_RESTARTS": "2"})
    assert (here.job, here.restarts) == ("70", 2)


def test_core_dumps_are_disabled(tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", **ONE)
    job.stub("python3", '#!/bin/bash\nulimit -c >"$NOTES/core"\n')
    job.run()
    assert (job.notes / "core").read_text() == "0\n"


def test_submission_without_shell_variables_is_reported(tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", **ONE)
    assert "submitted with --export=NONE" in job.run(SLURM_EXPORT_ENV="NONE").stderr
    assert "submitted with --export=NONE" not in job.run().stderr
    assert "#SBATCH --export=ALL" in (job.folder / "job/job.sbatch").read_text()


@pytest.mark.parametrize("target", ["slurm", "lsf"])
def test_starts_that_never_trained_do_not_count_as_restarts(target: str, tmp_path: Path) -> None:
    job = make(tmp_path / "project", target, **ONE)
    assert not any("R566" in job.run(SLURM_RESTART_COUNT=str(restart)).stderr for restart in range(8))


def test_findings_of_a_failed_node_are_shown_despite_a_long_log(tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", HOSTS, **TWO)
    job.stub("srun", '#!/bin/bash\nwhile [ "$1" != bash ]; do shift; done\nSLURM_NODEID=1 exec "$@"\n')
    said = "echo 'error[R504]: the lock needs 1 card'; echo '  note: none'; for i in {1..60}; do echo line $i; done"
    job.stub("python3", f"#!/bin/bash\n{said}\nexit 1\n")
    done = job.run()
    assert "error[R504]: the lock needs 1 card" in done.stderr
    assert "line 60" in done.stderr
    assert "line 30" not in done.stderr


@pytest.mark.parametrize("target", ["slurm", "lsf"])
def test_job_without_progress_is_not_restarted_forever(target: str, tmp_path: Path) -> None:
    job = make(tmp_path / "project", target, **ONE)
    checkpoints = job.output / "checkpoints"
    # What a run says before its first step.
    job.stub("python3", PYTHON.replace("exit 0", "echo 'global batch 8 = 4 x 2 x 1'"))

    def start(restart: int) -> str:
        return job.run(SLURM_RESTART_COUNT=str(restart)).stderr

    assert not any("R566" in start(restart) for restart in range(3))
    checkpoints.mkdir(parents=True)
    (checkpoints / "epoch-0000-step-000001.pt").touch()
    assert not any("R566" in start(restart) for restart in range(3, 6))
    (checkpoints / "epoch-0000-step-000002.pt").touch()
    assert not any("R566" in start(restart) for restart in range(6, 9))
    assert "error[R566]: job 70" in start(9)
    calls = (job.notes / "calls").read_text()
    assert "the newest checkpoint is still: epoch-0000-step-000002.pt" in start(10)
    assert (job.notes / "calls").read_text() == calls
    # Another submission begins to count again.
    assert "R566" not in job.run("71").stderr
