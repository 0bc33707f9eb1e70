"""Weights & Biases, online or offline. Its own process (wandb-core) writes everything to `wandb/` in the output folder.

That process writes its buffered data when the run ends. If it dies before, this data is lost and each call raises
(MailboxClosedError, ConnectionResetError), so the journal keeps all records until the run is closed. `ratc_runtime
sync` (or `wandb sync`) sends offline runs, and the data that an online run could not upload.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ratc_runtime.errors import warn
from ratc_runtime.tracking.interface import Backend, Record, reason

#: Seconds: for the server's first answer, to begin online, and to upload the rest at the end.
ANSWER, BEGIN, FINISH = 4.0, 10.0, 10.0
DEFAULT_SERVER = "https://api.wandb.ai"


def has_credentials() -> bool:
    """Return whether an account is set up for wandb's server, without asking the user for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER).hostname or ""
    try:
        file = os.environ.get("NETRC") or Path("~/.netrc").expanduser()
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError, RuntimeError):
        return False


def reach_server() -> None:
    """Raise OSError unless wandb's server answers soon. wandb itself would wait, and hold back all records."""
    server = os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER
    try:
        urllib.request.urlopen(server, timeout=ANSWER).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise


def end_process() -> None:
    """Wait until wandb's process has written everything and has ended. Raises RuntimeError if it failed."""
    import wandb

    try:
        wandb.teardown()
    except SystemExit as end:  # wandb would end this process, too
        raise RuntimeError(f"wandb's process ended with status {end.code}") from None


class Wandb(Backend):
    """One run of wandb's with ratc's id, so that every start continues it."""

    name = "Weights & Biases"
    switch = "wandb"
    journal = True
    safe_after_close = True
    patience = patience_after_failure = ANSWER + BEGIN + FINISH
    _run: Any = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.mode = os.environ.get("WANDB_MODE") or self.about.options["wandb_mode"]
        if self.mode == "online" and not has_credentials():
            warn(
                "no account for Weights & Biases is set up (WANDB_API_KEY, `wandb login`): the run is recorded offline"
            )
            self.mode = "offline"
        if self.mode != "online":
            self.patience = self.patience_after_failure = 60.0  # no network to wait for

    def load(self) -> None:
        """Import wandb without its own console messages."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb  # noqa: F401

    def open(self) -> None:
        """Start or continue the run. If the server does not answer, the run is recorded offline."""
        if self._run is not None:
            self._run = None
            with contextlib.suppress(Exception):  # it may be gone
                end_process()
        try:
            if self.mode == "online":
                reach_server()
            self._run = self._begin(self.mode)
        except Exception as error:
            if self.mode != "online":
                raise
            warn(f"Weights & Biases cannot be reached: {reason(error)}. The run is recorded offline")
            end_process()
            self.mode = "offline"
            self._run = self._begin(self.mode)

    def _begin(self, mode: str) -> Any:
        import wandb

        return wandb.init(
            project=self.about.options["wandb_project"],
            name=self.about.name,
            notes=self.about.description or None,
            id=self.about.id,
            # For an offline run this is set when it is sent.
            resume="allow" if mode == "online" else None,
            mode=mode,  # type: ignore[arg-type]  # wandb refuses other words
            dir=str(self.about.output_dir),
            config=self.about.config,
            settings=wandb.Settings(
                console="off", silent=True, init_timeout=BEGIN, finish_timeout=FINISH, disable_code=True
            ),
        )

    def send(self, records: list[Record]) -> None:
        """Pass records to wandb's process, which writes them to the disk."""
        for record in records:
            kind = record["kind"]
            if kind == "metrics":
                # wandb measures the machine itself.
                values = {key: value for key, value in record["values"].items() if not key.startswith("system/")}
                self._run.log(values, step=record["step"])
            elif kind in ("params", "tags"):
                self._run.config.update({kind: record["values"]}, allow_val_change=True)
            elif kind == "artifact":
                self._files(self.about.output_dir / record["path"])
            elif record["status"] != "RUNNING":
                self._status = record["status"]

    def _files(self, path: Path) -> None:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                self._run.save(str(file), base_path=str(path.parent), policy="now")

    _status = "FAILED"

    def close(self) -> None:
        """End the run, and wandb's process: it may still be writing when `finish` returns (seen with wandb 0.30).

        A stopped run is marked as such, and continues under the same id.
        """
        if self._status == "KILLED":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if self._status == "FINISHED" else 1)
        end_process()

    def describe(self) -> str:
        """Return project and run, or the folder of an offline run."""
        if self.mode == "online":
            return f"Weights & Biases: project {self.about.options['wandb_project']}, run {self.about.id}"
        return f"Weights & Biases: {self.about.output_dir / 'wandb'} (offline)"
