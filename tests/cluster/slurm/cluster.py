"""Asking a Slurm to do things, and waiting for what comes of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.effort import HANGS_S
from tests.helpers.waiting import wait_until

HERE = Path(__file__).parent
#: Where `up` keeps the daemons' files (`common`).
BASE = "/var/lib/ratc-test-slurm"
#: The programs that each cluster needs, and the Debian packages that have them.
PROGRAMS: dict[str, tuple[str, ...]] = {"plain": ("slurmctld", "slurmd", "sbatch", "munged")}
PROGRAMS["site"] = (*PROGRAMS["plain"], "slurmdbd", "mariadbd", "mariadb", "ip")
PACKAGES: dict[str, tuple[str, ...]] = {
    "plain": ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge")
}
PACKAGES["site"] = (*PACKAGES["plain"], "slurmdbd", "mariadb-server", "mariadb-client", "iproute2")
#: States that a job does not leave. A requeued one is pending again, and so in none of them.
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY"}


@dataclass
class Slurm:
    """A running Slurm, and the jobs that were submitted through this object; `user` is put before a user's commands."""

    jobs: list[str] = field(default_factory=list)
    user: tuple[str, ...] = ()

    def sbatch(
        self, script: Path | str, *options: str, folder: Path, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `sbatch OPTIONS SCRIPT` in a folder, as a user would there."""
        return self.run("sbatch", *options, str(script), folder=folder, **variables)

    def run(self, *command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder, as a user would there."""
        return subprocess.run(
            [*self.user, *command],
            cwd=folder,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=HANGS_S,
            check=False,
        )

    def submit(self, script: Path | str, *options: str, folder: Path, **variables: str) -> str:
        """Submit a job and return its number."""
        done = self.sbatch(script, "--parsable", *options, folder=folder, **variables)
        assert done.returncode == 0, done.stderr
        self.jobs.append(done.stdout.strip())
        return self.jobs[-1]

    def facts(self, job: str) -> dict[str, str]:
        """What the controller knows of a job, for some minutes after its end too: JobState, Restarts, ExitCode …"""
        text = ask("scontrol", "show", "job", job)
        return dict(re.findall(r"(?:^|\s)([A-Z]\w*)=(\S*)", text))

    def state(self, job: str) -> str:
        """The state of a job: PENDING, RUNNING, COMPLETED …"""
        return self.facts(job)["JobState"]

    def wait_for(self, job: str, *states: str) -> dict[str, str]:
        """Wait until a job is in one of the states, and return its facts; an unexpected end fails the test."""

        def there() -> bool:
            state = self.state(job)
            assert state in states or state not in ENDED, f"job {job} is {state}, not {' or '.join(states)}"
            return state in states

        wait_until(there, f"job {job} is {' or '.join(states)}")
        return self.facts(job)

    def wait_for_end(self, job: str) -> dict[str, str]:
        """Wait until a job has ended, however, and return its facts."""
        return self.wait_for(job, *ENDED)

    def signal(self, job: str, name: str, batch: bool = False) -> None:
        """Send a signal to the batch shell of a job, or to its steps only."""
        # Of a task of an array, Slurm 22.05 delivers the signal, says that it could not, and scancel sends
        # it again after 5 s, on and on: once is meant.
        command = ["timeout", "4", "scancel", f"--signal={name}", *(["--batch"] if batch else []), job]
        assert subprocess.run(command, check=False, timeout=60).returncode in (0, 124)

    def running_tasks(self, job: str) -> int:
        """How many tasks of an array run now."""
        return len(ask("squeue", "--noheader", "--array", f"--jobs={job}", "--states=RUNNING", "--format=%i").split())

    def cancel(self, job: str) -> None:
        """Cancel a job, as its user would."""
        subprocess.run(["scancel", job], check=True, timeout=60)

    def take_down(self, node: str) -> None:
        """Take a node away, as when it fails. It comes back by itself, for its daemon lives."""
        command = ["scontrol", "update", f"nodename={node}", "state=down", "reason=test"]
        subprocess.run(command, check=True, timeout=60)

    @contextlib.contextmanager
    def without_daemon(self, node: str) -> Iterator[None]:
        """Kill a node's daemon, as a node dies: its processes go on, and nobody can reach it. It comes back after."""
        pid = int(Path(f"{BASE}/run/{node}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        self.take_down(node)
        try:
            yield
        finally:
            subprocess.run([HERE / "node", node], check=True, timeout=60)
            wait_until(lambda: "idle" in ask("sinfo", "-h", "-N", "-n", node, "-o", "%T"), f"{node} is idle")

    def cancel_all(self) -> None:
        """Cancel what still runs of the submitted jobs, and wait until it is gone."""
        if self.jobs:
            subprocess.run(["scancel", "--quiet", *self.jobs], check=False, timeout=60)
            wait_until(lambda: not ask("squeue", "--noheader", f"--jobs={','.join(self.jobs)}"), "the jobs are gone")
            self.jobs.clear()


def ask(*command: str) -> str:
    """Return what a command of Slurm prints; nothing if Slurm does not know the job. Ask again if the controller, as on
    a busy machine, does not answer in time.
    """
    answers: list[str] = []

    def answered() -> bool:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S, check=False)
        if done.returncode == 0 or "Invalid job id" in done.stderr:
            answers.append(done.stdout)
        return bool(answers)

    wait_until(answered, f"an answer to `{' '.join(command)}`")
    return answers[0]


def running() -> str | None:
    """Which cluster of these tests runs now."""
    try:
        first = Path("/etc/slurm/slurm.conf").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    kind = re.search(r"tests/cluster/slurm/up\) (\w+)", first)
    ping = ["scontrol", "ping"]
    return kind[1] if kind and subprocess.run(ping, capture_output=True, check=False).returncode == 0 else None


def debian_packages(kind: str) -> str | None:
    """Install what a cluster needs and is missing; returns why that is impossible, or None."""
    if os.geteuid() != 0:
        return "only root may start Slurm's daemons"
    if all(_found(program) for program in PROGRAMS[kind]):
        return None
    if not _found("apt-get"):
        return "Slurm is not installed, and only on Debian do these tests install it"
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES[kind]]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(install, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:  # a fresh image knows no packages yet
        subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)
        done = subprocess.run(install, env=environment, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"apt-get does not install Slurm: {done.stderr.strip()[-300:]}"


def _found(program: str) -> bool:
    return any(os.access(Path(folder) / program, os.X_OK) for folder in (*os.get_exec_path(), "/usr/sbin"))
