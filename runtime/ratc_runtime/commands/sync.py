"""Send the unsent records of a run: `python -m ratc_runtime sync OUTPUT_DIR`.

If its tracking server is unreachable, a run leaves its curves in the output folder. Sending them twice does no harm, so
you can interrupt and repeat this. The destination is MLFLOW_TRACKING_URI, or the server that the run was started with.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.sizes import counted
from ratc_runtime.tracking import mlflow
from ratc_runtime.tracking.interface import About, Backend, reason
from ratc_runtime.tracking.journal import Busy, Journal
from ratc_runtime.tracking.mlflow import Mlflow
from ratc_runtime.tracking.tracker import ABOUT, FOLDER
from ratc_runtime.tracking.wandb import Wandb

RECORDS_PER_CALL = 500


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime sync",
        description="Send curves that wait in a run's output folder to MLflow or Weights & Biases.",
    )
    parser.add_argument("output_dir", type=Path, help="the output folder of a run")
    return parser.parse_args(argv)


def sync_journal(kind: type[Backend], folder: Path, output_dir: Path) -> int:
    """Send one run's records for one backend; return their number. Raises R522 or R523."""
    try:
        journal = Journal(folder / kind.switch)
    except Busy:
        raise RuntimeFinding(
            "R522",
            f"the run in {output_dir} is still going on",
            "it sends the waiting records itself when the server answers",
        ) from None
    try:
        number = journal.waiting()
        return _SENDERS[kind](journal, number, read_about(folder, output_dir)) if number else 0
    finally:
        journal.release()


def read_about(folder: Path, output_dir: Path) -> About:
    """Read a run's description for the backends. Raises R522."""
    try:
        return About.read(folder / ABOUT, output_dir)
    except (OSError, ValueError, TypeError) as error:
        raise RuntimeFinding("R522", f"{folder / ABOUT} cannot be read", f"{type(error).__name__}: {error}") from None


def _send_mlflow(journal: Journal, number: int, about: About) -> int:
    backend = Mlflow(about, journal.state, journal.save)
    if not os.environ.get("MLFLOW_TRACKING_URI") and str(journal.state.get("uri", "")).startswith("http"):
        backend.connect_to(journal.state["uri"])
    try:
        backend.open()
        journal.deliver(backend.send, RECORDS_PER_CALL)
    except Exception as error:  # servers and databases raise various errors
        raise RuntimeFinding(
            "R523",
            f"MLflow at {mlflow.without_secrets(backend.uri)} has not taken everything",
            f"{reason(error)}\nstill to be sent: {journal.waiting()} of {counted(number, 'record')}",
            "run the same command again when the server answers, or name another with MLFLOW_TRACKING_URI",
        ) from None
    print(f"{counted(number, 'record')} sent: {backend.describe()}", flush=True)
    return number


def _write_wandb(journal: Journal, number: int, about: About) -> int:
    """Write a run's records as an offline run of Weights & Biases, which `sync_wandb` then sends."""
    backend = Wandb(dataclasses.replace(about, options={**about.options, "wandb_mode": "offline"}), journal.state)
    backend.mode = "offline"
    try:
        backend.load()
        backend.open()
        journal.deliver(backend.send, RECORDS_PER_CALL, settled=False)
        backend.close()
    except Exception as error:  # a package that is missing, a process that dies
        raise RuntimeFinding(
            "R523",
            "Weights & Biases has not taken everything",
            f"{reason(error)}\nstill to be sent: {counted(number, 'record')}",
            "run the same command again; the package is installed with: pip install wandb",
        ) from None
    journal.mark_sent()
    print(f"{counted(number, 'record')} written: {backend.describe()}", flush=True)
    return number


_SENDERS: dict[type[Backend], Callable[[Journal, int, About], int]] = {Mlflow: _send_mlflow, Wandb: _write_wandb}


def _run_wandb(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def sync_wandb(output_dir: Path) -> int:
    """Send runs of Weights & Biases that are not uploaded; return the number of folders. Raises R523."""
    folders = sorted(output_dir.glob("wandb/offline-run-*")) + sorted(output_dir.glob("wandb/run-*"))
    if not folders:
        return 0
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--yes", *map(str, folders)]
    done = _run_wandb(command)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise RuntimeFinding(
            "R523",
            "Weights & Biases has not taken everything",
            said[-300:],
            "log in with WANDB_API_KEY or `wandb login`, and run the same command again",
        )
    print(f"{counted(len(folders), 'run')} handed to wandb sync", flush=True)
    return len(folders)


def send(output_dir: Path) -> int:
    """Send everything in an output folder, and print each finding; return the exit status."""
    mlflow.prepare()
    runs = [path.parent for path in sorted(output_dir.glob(f"{FOLDER}/*/{ABOUT}"))]
    tasks = [
        partial(sync_journal, kind, folder, output_dir)
        for folder in runs
        for kind in _SENDERS
        if any(folder.glob(f"{kind.switch}.*"))
    ]
    if runs or any(output_dir.glob("wandb/*run-*")):
        tasks.append(partial(sync_wandb, output_dir))
    if not tasks:
        tasks.append(partial(_nothing, output_dir))
    status = sent = 0
    for task in tasks:
        try:
            sent += task()
        except RuntimeFinding as finding:
            print(finding.render(), file=sys.stderr, flush=True)
            status = 1
    if not status and not sent:
        print("everything was sent already", flush=True)
    return status


def _nothing(output_dir: Path) -> int:
    raise RuntimeFinding(
        "R522",
        f"{output_dir} holds nothing to send",
        f"looked for {output_dir / FOLDER} and {output_dir / 'wandb'}",
        "name the output folder of a run that tracks with MLflow or Weights & Biases",
    )


def main(argv: list[str] | None = None) -> int:
    """Send the records; return 0 if everything is sent, 1 after a finding."""
    return send(parse(argv).output_dir)


if __name__ == "__main__":
    sys.exit(main())
