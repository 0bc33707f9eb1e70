"""Compiled scripts as the scheduler would run them, with stand-ins for its programs and for Python."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.effort import HANGS_S
from tests.helpers import jobs
from tests.helpers.jobs import spec
from tests.places import TESTS

CLUSTERS = {"slurm": TESTS / "cluster/slurm/cluster.yaml", "lsf": TESTS / "cluster/lsf/cluster.yaml"}
SCRIPT = {"slurm": "job.sbatch", "lsf": "job.lsf", "local": "run.sh"}
#: Two tasks of one start: this machine, under two names.
HOSTS = ("localhost", "127.0.0.1")
ONE = {"training__batch_size": 4, "launcher": "torchrun", "training__use_accelerate": False}
TWO = {"training__batch_size": 4, "resources__nodes": 2}
#: In place of Python: notes what it is called with and its environment, and does what `act` says.
PYTHON = """\
#!/bin/bash
printf '%s\\n' "$*" >>"$NOTES/calls"
case "$*" in *ratc_runtime.train*)
  env -0 >"$NOTES/environment"
  if [ -d "${TMPDIR:-}" ]; then echo "$TMPDIR" >>"$NOTES/tmp"; fi ;;
esac
exit 0
"""


@dataclass
class Job:
    """A compiled project, and stand-ins for the scheduler's programs and for Python."""

    folder: Path
    target: str
    hosts: tuple[str, ...] = HOSTS[:1]

    def __post_init__(self) -> None:
        self.bin, self.notes = self.folder / "bin", self.folder / "notes"
        self.notes.mkdir()
        self.bin.mkdir()
        self.stub("python3", PYTHON)
        self.stub("squeue", "#!/bin/sh\necho RUNNING\n")
        names = "".join(f"echo {host}; " for host in self.hosts)
        self.stub("scontrol", f'#!/bin/sh\ncase "$*" in *hostnames*) {names};; esac\n')
        self.stub("srun", '#!/bin/bash\nwhile [ "$1" != bash ]; do shift; done\nSLURM_NODEID=0 exec "$@"\n')

    @property
    def output(self) -> Path:
        return self.folder / "outputs/demo"

    def stub(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, number: str = "70", **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the script as the scheduler would."""
        environment = {
            "PATH": f"{self.bin}:{TESTS / 'cluster/lsf'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "NOTES": str(self.notes),
        }
        script: list[str] = ["bash", str(self.folder / "job" / SCRIPT[self.target])]
        if self.target == "slurm":
            environment |= {
                "SLURM_JOB_ID": number,
                "SLURM_JOB_NODELIST": ",".join(self.hosts),
                "SLURM_CPUS_PER_TASK": "1",
            }
        if self.target == "lsf":
            slots = " ".join(f"{host} 1" for host in self.hosts)
            environment |= {
                "LSB_JOBID": number,
                "LSB_JOBINDEX": "0",
                "LSB_MCPU_HOSTS": slots,
                "LS_SUBCWD": str(self.folder),
            }
        return subprocess.run(
            script,
            cwd=self.folder,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=HANGS_S,
        )

    def environment(self) -> dict[str, str]:
        """What the launcher was given."""
        return read(self.notes / "environment")


def read(path: Path) -> dict[str, str]:
    """What `env -0` wrote."""
    return dict(pair.split("=", 1) for pair in path.read_text().split("\0") if pair)


def make(
    folder: Path, target: str, hosts: tuple[str, ...] = HOSTS[:1], cluster: Path | None = None, **changes: Any
) -> Job:
    folder.mkdir(parents=True)
    facts = CLUSTERS.get(target) if cluster is None else cluster
    content = spec(**changes) if facts is None else spec(resources__cluster=str(facts), **changes)
    (folder / "spec.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    jobs.compiled(folder, target)
    return Job(folder, target, hosts)
