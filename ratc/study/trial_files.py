"""The files of one trial: compiled files, results and the lock of its process; and how its script is started.

Two paths identify a trial, so that any process of a study, on any node, can use it.
"""

from __future__ import annotations

import contextlib
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

#: In an output folder: the file that requests a stop, and the answer, which a job's script reads.
STOP, STOPPED = "STOP", "STOPPED"
#: The file that the runtime keeps locked in an output folder while it trains there.
_OWNER = "owner.json"
#: Bytes of a file of results that are read: more is none of the runtime's.
_MOST = 64 << 20
#: The ranks of the study's own process, which are not a trial's.
_NOT_HANDED_ON = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_RANKS = ("SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_TASK", "JSM_", "PMI", "OMPI_")


@dataclass(frozen=True, slots=True)
class TrialFiles:
    """A trial's compiled files in ``folder``, its results in ``output``; both absolute if it may run elsewhere."""

    folder: str
    output: str

    @property
    def log(self) -> str:
        """The file with its script's output."""
        return f"{self.folder}.log"

    @property
    def lock_digest(self) -> str:
        """The digest of the lock, as the runtime records it."""
        with open(self._lock, "rb") as file:
            return sha256(file.read()).hexdigest()

    def results(self) -> dict[str, Any]:
        """Return the results of its run, final or of the epochs so far; empty if there are none yet.

        They must be of this very lock. A trial of an array job has its lock in the job's folder, which is not known
        here: then the results in its output folder are taken, of any lock.
        """
        return self.own_results() if os.path.exists(self._lock) else next(iter(self._told()), {})

    def own_results(self) -> dict[str, Any]:
        """Return the results of this very lock; empty if there are only those of an earlier one."""
        own = self.lock_digest
        return next((found for found in self._told() if own in _digests(found)), {})

    def _told(self) -> list[dict[str, Any]]:
        """Return the valid result files of the output folder, the newest first."""
        found = []
        for name in ("epochs.json", "results.json"):
            path = os.path.join(self.output, name)
            with contextlib.suppress(OSError, ValueError, RecursionError):
                content = json.loads(files.read(path, _MOST) or b"")
                if _is_sound(content):
                    found.append((os.stat(path).st_mtime_ns, content))
        return [content for _, content in sorted(found, key=lambda pair: pair[0])[::-1]]

    def is_finished(self) -> bool:
        """Whether its own lock was trained to the end."""
        return self.own_results().get("status") == "finished"

    def is_held(self) -> bool:
        """Whether a process trains there, possibly one of a `ratc tune` that was killed."""
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
        """Ask the run to save and end, by the same file as its own script."""
        if self.is_held():
            files.replace(os.path.join(self.output, STOP), b"", flush=False)

    def why(self, begun: int = 0) -> str:
        """Return the code of the last finding in its log, from an offset in bytes on; "" if there is none."""
        try:
            with open(self.log, "rb") as file:
                file.seek(begun)
                codes = re.findall(r"error\[(R\d{3})\]", file.read().decode(errors="replace"))
        except OSError:
            return ""
        return codes[-1] if codes else ""

    def end_early(self, epoch: int) -> None:
        """Record that the study has ended the trial early."""
        files.replace(self._early, f"{self.lock_digest} {epoch}\n".encode(), flush=False)

    def ended_early(self) -> bool:
        """Whether the study has ended the trial early, with this very lock."""
        try:
            with open(self._early) as file:
                return file.read().split()[:1] == [self.lock_digest]
        except OSError:
            return False

    @property
    def _early(self) -> str:
        return f"{self.folder}.early"

    @property
    def _lock(self) -> str:
        return os.path.join(self.folder, "lock.yaml")

    def start(
        self, python: str, variables: Mapping[str, str], die_with_parent: bool = False
    ) -> tuple[subprocess.Popen[bytes], int]:
        """Start its script; returns the process, and the offset in bytes at which its log begins.

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
        # Appended: an earlier start may still write.
        with files.open_own(self.log, os.O_APPEND) as log:
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


def _digests(results: Mapping[str, Any]) -> list[str]:
    """Return the digests of the locks that results hold for: the trained one, and those that train the same."""
    known = results.get("finished_locks")
    own = str(results.get("lock_sha256", "")).removeprefix("sha256:")
    return [own, *(map(str, known) if isinstance(known, list) else ())]


def _is_sound(results: Any) -> bool:
    """Whether results have the form that the runtime gives them, as far as a study reads them."""
    if not isinstance(results, dict):
        return False
    epochs, seconds = results.get("epochs", []), results.get("wall_seconds", 0)
    return (
        isinstance(epochs, list)
        and all(isinstance(one, dict) and type(one.get("epoch")) is int for one in epochs)
        and all(_is_number(value) for one in epochs for value in one.values() if isinstance(value, (int, float)))
        and (seconds is None or _is_number(seconds))
    )


def _is_number(value: Any) -> bool:
    """Whether it is a number of a normal size: no integer of thousands of digits."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
