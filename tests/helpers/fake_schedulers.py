"""Schedulers that are small programs: they say what real ones say, and refuse, hang and forget on request."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.effort import HANGS_S
from tests.places import ROOT

SHOW = "JobId=5 JobName=demo\n   JobState={} Reason=None\n   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode={}\n"


class Place:
    """A folder with a spec, and another one with fake programs, which is all that is on PATH."""

    def __init__(self, folder: Path, **programs: str) -> None:
        self.folder, self.fakes = folder / "work here", folder / "fakes"
        self.folder.mkdir()
        self.fakes.mkdir()
        (self.fakes / "bash").symlink_to("/bin/bash")  # which compiling asks whether the scripts can be read
        self.spec()
        for name, text in programs.items():
            self.program(name, text)

    def spec(self, resources: str = "num_gpus: 0, cpus: 2, walltime: '01:00'", more: str = "") -> None:
        text = f"experiment_name: demo\ndata: {{data_dir: data}}\ntraining: {{batch_size: 2}}\n{more}"
        (self.folder / "spec.yaml").write_text(text + f"resources:\n  {resources.replace(', ', chr(10) + '  ')}\n")

    def program(self, name: str, text: str) -> None:
        path = self.fakes / name
        path.write_text(f"#!/bin/bash\nPATH=/usr/bin:/bin HERE='{self.fakes}'\n{text}")
        path.chmod(0o755)

    def start(self, *options: str, **variables: str) -> subprocess.Popen[str]:
        """`ratc submit spec.yaml` in the spec's folder."""
        return subprocess.Popen(
            [sys.executable, "-m", "ratc", "submit", "spec.yaml", *options],
            cwd=self.folder,
            env={**self.environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background process, which the tests may be, hands on that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SBATCH_", "SLURM_", "LSB_"))}
        return {**kept, "PATH": str(self.fakes), "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}

    def submit(self, *options: str, **variables: str) -> tuple[int, str, str]:
        process = self.start(*options, **variables)
        out, err = process.communicate(timeout=HANGS_S)
        return process.returncode, out, err

    def refused(self, code: str, *options: str, **variables: str) -> str:
        """Nothing is submitted for the reason of this code; what was said."""
        status, out, err = self.submit(*options, **variables)
        assert (status, out) == (1, ""), err
        assert re.findall(r"^error\[(R\d+)\]", err, re.MULTILINE) == [code], err
        return err

    @property
    def artifacts(self) -> Path:
        return self.folder / "compiled/demo/slurm"

    def calls(self) -> list[str]:
        path = self.fakes / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def state(self, text: str) -> None:
        (self.fakes / "state").write_text(text)

    def record(self) -> list[dict[str, str | None]]:
        found: list[dict[str, str | None]] = json.loads((self.artifacts / ".submitted/jobs.json").read_text())[
            "submissions"
        ]
        return found
