"""The starts of one run, one line each in `starts.jsonl`: the number of interruptions is part of the run's cost.

Checkpoints do not show them: a start that died before its first checkpoint leaves none.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ratc_runtime.errors import warn
from ratc_runtime.output import atomic

FILE = "starts.jsonl"
#: Number of starts in results.json; a job that is preempted for weeks has hundreds.
SHOWN = 20
#: The identifier of a run: it is the name of a folder of trackers' records, and a tag on their servers.
RUN_ID = "^[0-9a-f]{32}$"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the recorded starts. Incomplete lines from a crash are skipped."""
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            start = json.loads(line)
            if isinstance(start, dict):
                found.append(start)
    return found


class RunHistory:
    """All starts of a run, this one last. Only the main process makes one.

    `run_id` identifies the run to trackers: that of the checkpoint, else that of the last start under the same
    fingerprint (which died before its first checkpoint), else a new one.
    """

    def __init__(
        self,
        output_dir: Path,
        fingerprint: str,
        from_scratch: bool,
        checkpoint_id: str | None,
        epoch: int,
        step: int,
        world_size: int = 1,
    ) -> None:
        path = output_dir / FILE
        earlier = [] if from_scratch else [start for start in read(path) if start.get("fingerprint") == fingerprint]
        last = earlier[-1].get("run_id") if earlier else None
        if not (isinstance(last, str) and re.fullmatch(RUN_ID, last)):
            last = None  # it is the name of a folder
        self.run_id: str = checkpoint_id or last or secrets.token_hex(16)
        this = {
            "run_id": self.run_id,
            "fingerprint": fingerprint,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "epoch": epoch,
            "step": step,
            "world_size": world_size,
        }
        self.all = [*earlier, this]
        text = "".join(json.dumps(start) + "\n" for start in self.all)
        try:
            atomic.write_text(path, text, sync=True)
        except OSError as error:
            warn(f"cannot write {path}, so this start is not counted by later ones: {error.strerror or error}")

    def record(self) -> dict[str, Any]:
        """Return the entry for results.json: the number of starts, and the last ones."""
        shown = [
            {key: start.get(key) for key in ("time", "host", "epoch", "step", "world_size")}
            for start in self.all[-SHOWN:]
        ]
        return {"number": len(self.all), "last": shown}

    def tags(self, checkpoint: str | None) -> dict[str, str]:
        """Return tags for trackers: the number of this start, and the checkpoint that it continues from."""
        this = self.all[-1]
        tags = {"ratc.starts": str(len(self.all)), "ratc.host": this["host"]}
        if checkpoint is not None:
            tags["ratc.resumed_from"] = f"{checkpoint} after epoch {this['epoch']}, step {this['step']}"
        return tags
