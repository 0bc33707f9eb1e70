"""A Slurm site with accounts, QOS, a job-submit script, a user without root, and separate networks of nodes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ratc.cli import main
from tests.cluster.slurm.cluster import BASE, Slurm
from tests.helpers.jobs import for_jobs, results, spec, write_project
from tests.helpers.waiting import wait_until
from tests.places import ROOT

pytestmark = pytest.mark.slow

HOME = Path(BASE) / "home"
TWO = {"training__batch_size": 4, "resources__nodes": 2}
#: One process without a launcher.
ONE = {"training__batch_size": 4, "launcher": "torchrun", "training__use_accelerate": False}


class User:
    """The site's user: projects in their home, which all nodes see."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder

    def project(self, name: str, slow: float | None = None, **changes: Any) -> Path:
        """A folder with a spec for the cluster that `ratc probe` has described."""
        folder = self.folder / name
        content = spec(resources__cluster=str(HOME / "site.yaml"), **changes)
        content["resources"] = {key: value for key, value in content["resources"].items() if value is not None}
        write_project(folder, content, slow)
        subprocess.run(["chown", "-R", "ratc-user:ratc-user", folder], check=True)
        return folder

    def ratc(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ratc in a folder, as the user."""
        python = {"PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", "RATC_PYTHON": sys.executable}
        return self.slurm.run(sys.executable, "-m", "ratc", *arguments, folder=folder, **python)

    def submit(self, folder: Path, *options: str, **variables: str) -> str:
        """Compile a project, `sbatch` what came out, and return the job's number."""
        done = self.ratc(folder, "compile", "spec.yaml", "--target", "slurm", "-o", "job")
        assert done.returncode == 0, done.stderr
        return self.slurm.submit("job/job.sbatch", *options, folder=folder, **{**for_jobs(), **variables})


def log(folder: Path) -> str:
    """The job's own log."""
    return "".join(path.read_text() for path in folder.glob("demo-*.out"))


@pytest.fixture
def user(site: Slurm, request: pytest.FixtureRequest) -> User:
    """The user in an empty folder of their home; the cluster's facts are a probe's, with its questions answered."""
    folder = HOME / re.sub(r"\W", "-", request.node.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.chown(folder, "ratc-user", "ratc-user")
    user = User(site, folder)
    facts = HOME / "site.yaml"
    if not facts.exists():
        done = user.ratc(HOME, "probe", "slurm", "-o", "probed.yaml")
        assert done.returncode == 0, done.stderr
        answered = yaml.safe_load((HOME / "probed.yaml").read_text())
        answered.pop("questions")
        facts.write_text(yaml.safe_dump(answered))
    return user


def test_a_probe_records_the_limits_of_the_site_or_asks_for_them(user: User) -> None:
    probed = yaml.safe_load((HOME / "probed.yaml").read_text())
    partitions, questions = probed["partitions"], probed["questions"]
    limits = ("max_memory_per_cpu", "min_nodes", "accounts", "qos")
    stated = {name: {key: of[key] for key in limits if of.get(key)} for name, of in partitions.items()}
    assert stated == {
        "general": {"max_memory_per_cpu": "4000MB"},
        "wide": {"min_nodes": 2},
        "physics": {"accounts": ["physics"]},
        "long": {"qos": ["long"]},
        "closed": {},
    }
    asked = {question.partition(":")[0] for question in questions}
    assert {f"partitions.{name}.account_required" for name in partitions} <= asked
    assert [question for question in questions if "is DOWN" in question] == [
        "partitions.closed.state: the partition is DOWN and starts no jobs now; will it be UP again?"
    ]


#: What the spec asks for, the same for sbatch, and what becomes of it.
REQUESTS: tuple[tuple[dict[str, Any], tuple[str, ...], bool], ...] = (
    ({"partition": "physics", "account": "physics"}, ("-pphysics", "-Aphysics"), True),
    ({"partition": "physics", "account": "biology"}, ("-pphysics", "-Abiology"), False),
    ({"partition": "long", "account": "physics", "qos": "long"}, ("-plong", "-Aphysics", "-qlong"), True),
    ({"partition": "long", "account": "physics", "qos": "normal"}, ("-plong", "-Aphysics", "-qnormal"), False),
    ({"partition": "wide", "nodes": 1}, ("-pwide", "-N1"), False),
    ({"partition": "wide", "nodes": 2}, ("-pwide", "-N2"), True),
    ({"num_gpus": 4, "cpus": None, "memory": None}, (), True),  # all that goes with four GPUs, as ratc asks for it
)


@pytest.mark.slow(every=True)
@pytest.mark.parametrize(("asked", "options", "accepted"), REQUESTS)
def test_ratc_and_the_controller_agree_on_a_request(
    user: User,
    asked: dict[str, Any],
    options: tuple[str, ...],
    accepted: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {f"resources__{key}": value for key, value in asked.items()}
    folder = user.project("asks", training__batch_size=1, **changes)
    monkeypatch.chdir(folder)
    status, err = main(["compile", "spec.yaml", "--target", "slurm", "-o", "job"]), capsys.readouterr().err
    assert (status == 0) == accepted, err
    assert accepted or "error[R322]" in err
    script = folder / "job/job.sbatch"
    if not accepted:
        script = folder / "nothing.sh"
        script.write_text("#!/bin/sh\n")
    said = user.slurm.sbatch(script, "--test-only", *options, folder=folder)
    assert (said.returncode == 0) == accepted, said.stderr


def test_submit_shows_messages_of_the_site_and_reasons_of_refusals(user: User) -> None:
    folder = user.project("message", **ONE)
    welcome = "sbatch said: sbatch: welcome to site: files in /scratch are removed after 30 days"
    refused = user.ratc(folder, "submit", "spec.yaml", "--walltime", "13:00:00")
    assert (refused.returncode, refused.stdout) == (1, "")
    reason = "jobs of more than 12 hours need a reservation: write to help@site.example"
    assert f"error[R414]: the scheduler refused the job: {reason}" in refused.stderr
    accepted = user.ratc(folder, "submit", "spec.yaml", "--wait")
    user.slurm.jobs.append(accepted.stdout.strip())
    assert accepted.returncode == 0, accepted.stderr
    assert welcome in accepted.stderr
    assert results(folder)["status"] == "finished"
    # What nobody but the site can answer is refused by the site.
    refused = user.ratc(folder, "submit", "spec.yaml", "--again", "--partition", "long", "--set", "resources.qos=long")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "error[R414]: the scheduler refused the job: Invalid qos" in refused.stderr


def test_two_nodes_in_separate_network_namespaces_train_together(user: User) -> None:
    folder = user.project("two", **TWO)
    job = user.submit(folder)
    facts = user.slurm.wait_for_end(job)
    assert facts["JobState"] == "COMPLETED", log(folder)
    assert facts["UserId"].startswith("ratc-user(")
    assert results(folder)["status"] == "finished"
    assert set(results(folder)["job"]["hosts"]) == {"ratc-n1", "ratc-n2"}
    assert {path.owner() for path in (folder / "outputs/demo").rglob("*")} == {"ratc-user"}


def test_a_head_node_that_another_node_cannot_resolve_ends_the_job(user: User) -> None:
    folder, hosts = user.project("unknown", **TWO), Path(BASE, "hosts/ratc-n2")
    before = hosts.read_text()
    try:
        # In place: what lies over the node's /etc/hosts is this very file.
        hosts.write_text(re.sub(r".* ratc-n1 .*\n", "", before))
        job = user.submit(folder, "--nodelist=ratc-n[1-2]")
        facts = user.slurm.wait_for_end(job)
    finally:
        hosts.write_text(before)
    assert facts["JobState"] == "FAILED", log(folder)
    assert "error[R563]: the head node ratc-n1 cannot be resolved on the node ratc-n2" in log(folder)
    assert user.ratc(folder, "why", job).stdout.startswith("error[R563]: ")
    hours, minutes, _ = facts["RunTime"].split(":")
    assert (int(hours), int(minutes)) < (0, 2)


def test_a_job_whose_node_loses_its_daemon_is_not_finished(user: User) -> None:
    """`srun` says that the node has failed, and comes back with 0: only the run's own word counts."""
    slow = {**ONE, "slow": 0.5}
    ends, goes_on = user.project("ends", checkpoint__requeue="never", **slow), user.project("goes on", **slow)
    submitted = {folder: user.submit(folder, "--nodelist=ratc-n3") for folder in (ends, goes_on)}
    wait_until(lambda: all("train loss" in log(folder) for folder in submitted), "both have done an epoch")
    with user.slurm.without_daemon("ratc-n3"):
        for folder, job in submitted.items():
            wait_until(lambda folder=folder: "error[R561]" in log(folder), "the script has seen it")
            assert not (folder / "outputs/demo/DONE").exists(), log(folder)
            assert user.slurm.state(job) != "COMPLETED"
    assert user.slurm.wait_for_end(submitted[ends])["JobState"] == "NODE_FAIL", log(ends)
    told = user.ratc(ends, "why", submitted[ends])
    assert told.stdout.startswith("error[R603]: the job lost a node"), told.stdout + told.stderr
    # The other is back in the queue, and trains what is left.
    facts = user.slurm.wait_for_end(submitted[goes_on])
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), log(goes_on)
    assert "continuing after epoch" in log(goes_on)
    assert (results(goes_on)["status"], len(results(goes_on)["epochs"])) == ("finished", 3)
    assert (goes_on / "outputs/demo/DONE").exists()


#: In place of Python: the first node's launcher takes the port that it is given, and both do nothing else until TERM.
LAUNCHER = """\
#!/bin/bash
case "$*" in *ratc_runtime.train*) ;; *) exit 0 ;; esac
[[ "$*" =~ main_process_port\\ ([0-9]+) ]]
exec {python} -c 'import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_DFL)
if os.environ["SLURM_NODEID"] == "0":
    taken = socket.socket()
    taken.bind(("", int(sys.argv[1])))
    taken.listen()
    print("has port", sys.argv[1], flush=True)
time.sleep(900)' "${{BASH_REMATCH[1]}}"
"""


def test_ten_requeues_of_two_neighbouring_jobs_never_collide(user: User) -> None:
    python = user.folder / "python"
    python.write_text(LAUNCHER.format(python=sys.executable))
    python.chmod(0o755)
    folders = [user.project("first", **TWO), user.project("second", **TWO)]
    for folder in folders:
        done = user.ratc(folder, "compile", "spec.yaml", "--target", "slurm", "-o", "job")
        assert done.returncode == 0, done.stderr
    nodes, launcher = "--nodelist=ratc-n[1-2]", {"RATC_PYTHON": str(python)}
    submitted = [user.slurm.submit("job/job.sbatch", nodes, folder=folder, **launcher) for folder in folders]
    assert int(submitted[1]) == int(submitted[0]) + 1

    def ports(folder: Path) -> list[str]:
        return re.findall(r"has port (\d+)", log(folder))

    def has_its_port(folder: Path, starts: int) -> None:
        wait_until(lambda: len(ports(folder)) == starts, f"start {starts} of {folder.name} has its port")

    for folder in folders:
        has_its_port(folder, 1)
    for turn in range(10):
        subprocess.run(["scontrol", "requeue", submitted[turn % 2]], check=True, timeout=60)
        has_its_port(folders[turn % 2], turn // 2 + 2)
        assert user.slurm.state(submitted[1 - turn % 2]) == "RUNNING"
    found = [port for folder in folders for port in ports(folder)]
    assert len(set(found)) == len(found) == 12
