"""What lies on the disk of one trial: its compiled files, its results, who holds it; and how its script is started.

Known by two paths alone, so that any process of a study, on any node, can be told of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ratc import files

#: In an output folder: what somebody leaves who asks for a stop, and the answer, which a job's script reads.
STOP, STOPPED = "STOP", "STOPPED"
#: What the runtime keeps locked in an output folder while it trains there.
_OWNER = "owner.json"
#: The ranks of whoever runs the study, which are no trial's.
_NOT_HANDED_ON = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_RANKS = ("SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_TASK", "JSM_", "PMI", "OMPI_")


@dataclass(frozen=True, slots=True)
class TrialFiles:
    """A trial's compiled files in ``folder``, its results in ``output``; both absolute where it may run elsewhere."""

    folder: str
    output: str

    @property
    def log(self) -> str:
        """Where what its script prints is kept."""
        return f"{self.folder}.log"

    @property
    def lock_digest(self) -> str:
        """Of the lock, as the runtime notes it."""
        with open(os.path.join(self.folder, "lock.yaml"), "rb") as file:
            return sha256(file.read()).hexdigest()

    def results(self) -> dict[str, Any]:
        """What its run says of itself, at its end or while it trains; nothing where it says nothing yet."""
        return next(iter(self._told()), {})

    def own_results(self) -> dict[str, Any]:
        """The same, if it is of this very lock and not of one that lay there before."""
        own = self.lock_digest
        return next((found for found in self._told() if str(found.get("lock_sha256", "")).endswith(own)), {})

    def _told(self) -> list[dict[str, Any]]:
        """What lies there, the newest first."""
        found = []
        for name in ("epochs.json", "results.json"):
            try:
                with open(os.path.join(self.output, name), encoding="utf-8") as file:
                    content = json.load(file)
                    found.append((os.fstat(file.fileno()).st_mtime_ns, content))
            except (OSError, ValueError):
                continue
        ordered = sorted(found, key=lambda pair: pair[0])[::-1]
        return [content for _, content in ordered if isinstance(content, dict)]

    def is_finished(self) -> bool:
        """Whether its own lock was trained to the end."""
        return self.own_results().get("status") == "finished"

    def is_held(self) -> bool:
        """Whether a process trains there, if only one that outlived a `ratc tune` that was killed."""
        try:
            with open(os.path.join(self.output, _OWNER), "r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.lockf(file, fcntl.LOCK_UN)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def ask_to_stop(self) -> None:
        """Leave word that the run may save and end, as its own script does."""
        if self.is_held():
            files.replace(os.path.join(self.output, STOP), b"", flush=False)

    def why(self, begun: int = 0) -> str:
        """The code of the last finding in its log, from a place on; nothing where there is none."""
        try:
            with open(self.log, "rb") as file:
                file.seek(begun)
                codes = re.findall(r"error\[(R\d{3})\]", file.read().decode(errors="replace"))
        except OSError:
            return ""
        return codes[-1] if codes else ""

    def end_early(self, epoch: int) -> None:
        """Note that the study needs no more of it."""
        files.replace(self._early, f"{self.lock_digest} {epoch}\n".encode(), flush=False)

    def ended_early(self) -> bool:
        """Whether the study has ended it, of this very lock."""
        try:
            with open(self._early) as file:
                return file.read().split()[:1] == [self.lock_digest]
        except OSError:
            return False

    @property
    def _early(self) -> str:
        return f"{self.folder}.early"

    def start(
        self, python: str, variables: Mapping[str, str], die_with_parent: bool = False
    ) -> tuple[subprocess.Popen[bytes], int]:
        """Start its script; returns the process, and from where on the log is of this start.

        The script is in a group of its own: Ctrl-C reaches it through its parent alone, once. With
        `die_with_parent` it is told to save and end when its parent dies.
        """
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in _NOT_HANDED_ON and not name.startswith(_RANKS)
        }
        # It lies over the lock, and every trial has its own.
        environment["RAT_OUTPUT_DIR"] = os.path.abspath(self.output)
        environment = {"RATC_PYTHON": python, **environment, **variables}
        command = [os.path.join(os.path.abspath(self.folder), "run.sh")]
        if die_with_parent:
            command = [sys.executable, os.path.join(os.path.dirname(__file__), "die_with_parent.py"), *command]
        # Behind what an earlier start wrote, which may write still.
        with open(self.log, "ab") as log:
            log.write(f"--- {time.strftime('%F %T')}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            return process, log.tell()
