"""The single interface for logging a run. If tracking fails, it warns, and training goes on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed.phases import phase
from ratc_runtime.errors import warn
from ratc_runtime.output.sizes import counted
from ratc_runtime.tracking.delivery_thread import DeliveryThread
from ratc_runtime.tracking.interface import About, Backend, Record
from ratc_runtime.tracking.journal import Busy, Journal
from ratc_runtime.tracking.mlflow import Mlflow
from ratc_runtime.tracking.system import SystemMonitor
from ratc_runtime.tracking.tensorboard import TensorBoard
from ratc_runtime.tracking.wandb import Wandb

#: One line per backend.
BACKENDS: tuple[type[Backend], ...] = (Mlflow, TensorBoard, Wandb)
FOLDER = "tracking"
ABOUT = "about.json"
MAX_PARAM_LENGTH = 6000


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested mappings as dotted names with text values. Lists are not flattened."""
    if isinstance(value, dict) and value:
        flat: dict[str, str] = {}
        for key, item in value.items():
            flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: str(value)[:MAX_PARAM_LENGTH]}


def describe_run(lock: Lock, output_dir: Path, run_id: str, first_step: int) -> About:
    """Return the description of a lock's run for the backends."""
    config = lock.model_dump()
    return About(
        id=run_id,
        name=lock.experiment_name,
        experiment=lock.logging.mlflow_experiment_name,
        description=lock.description,
        params=flatten(config),
        config=config,
        output_dir=output_dir,
        first_step=first_step,
        options={"wandb_project": lock.logging.wandb_project, "wandb_mode": lock.logging.wandb_mode},
    )


class Tracker:
    """Logs one run, from the main process. In every other process it does nothing.

    Nothing here waits for a network: records are queued, and a thread for each backend delivers them. `run_id` is
    ratc's own, and the same at every start that continues the run.
    """

    @phase("tracking")
    def __init__(
        self, lock: Lock, lock_path: Path, output_dir: Path, main: bool, run_id: str, first_step: int = 0
    ) -> None:
        self.run_id = run_id
        self._deliveries: list[DeliveryThread] = []
        self._monitor: SystemMonitor | None = None
        self._output_dir = output_dir
        self._folder = output_dir / FOLDER / run_id
        wanted = [kind for kind in BACKENDS if main and getattr(lock.logging, kind.switch)]
        if not wanted:
            return
        about = describe_run(lock, output_dir, run_id, first_step)
        if any(kind.journal for kind in wanted):
            self._keep_about(about)
        for kind in wanted:
            self._start(kind, about)
        self._keep_lock(lock_path)
        self._put({"kind": "status", "status": "RUNNING"})

    def _start(self, kind: type[Backend], about: About) -> None:
        if not kind.journal:
            self._begin(kind(about, {}), None)
            return
        try:
            journal = Journal(self._folder / kind.switch)
        except Busy:
            warn(f"{kind.name} is off for this run: another process sends the records in {self._folder}")
            return
        self._begin(kind(about, journal.state, journal.save), journal)

    def _begin(self, backend: Backend, journal: Journal | None) -> None:
        try:
            backend.load()
        except Exception as error:  # a package that is missing, or does not fit the others
            warn(f"{backend.name} is off for this run: {type(error).__name__}: {error}")
            return
        if isinstance(backend, Mlflow) and journal is not None:
            first = 1 + max((step for name, step in journal.marks.items() if name.startswith("system/")), default=-1)
            self._monitor = SystemMonitor(backend.monitors, self._measured, first)
        self._deliveries.append(DeliveryThread(backend, journal))

    def _keep_about(self, about: About) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not (self._folder / ABOUT).exists():
                about.write(self._folder / ABOUT)
        except OSError as error:
            warn(f"{self._folder} cannot be written: {error.strerror or error}; curves are kept in memory only")

    def _keep_lock(self, lock_path: Path) -> None:
        """Log the current lock before training. If a later start has another one, it is added beside the first."""
        try:
            content = lock_path.read_bytes()
            kept = self._folder / "lock.yaml"
            if kept.exists() and kept.read_bytes() != content:
                kept = self._folder / f"lock-{hashlib.sha256(content).hexdigest()[:12]}.yaml"
            self._folder.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(content)
            self._artifact(kept)
        except OSError as error:
            warn(f"the lock is not among the artifacts: {error.strerror or error}")

    def _put(self, record: Record) -> None:
        for delivery in self._deliveries:
            delivery.put(record)

    def _measured(self, values: dict[str, float], number: int) -> None:
        record = {"kind": "metrics", "step": number, "time": int(time.time() * 1000), "values": values}
        for delivery in self._deliveries:
            if isinstance(delivery.backend, Mlflow):
                delivery.put(record)

    def _artifact(self, path: Path) -> None:
        # Relative to the output folder, which may have moved when it is sent.
        relative = path.resolve().relative_to(self._output_dir.resolve())
        self._put({"kind": "artifact", "path": str(relative)})

    def note(self, parameters: Mapping[str, str]) -> None:
        """Add parameters that are only known in the run. An existing one must have the same value."""
        if parameters:
            self._put({"kind": "params", "values": dict(parameters)})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags. They may change from start to start."""
        if tags:
            self._put({"kind": "tags", "values": dict(tags)})

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Log metrics at an optimizer step (counted over the whole run). None, NaN and infinities are left out."""
        if self._deliveries:
            self._put({"kind": "metrics", "step": step, "time": int(time.time() * 1000), "values": dict(values)})

    @phase("tracking")
    def flush(self) -> None:
        """Make the records so far survive a crash, and request their delivery without waiting."""
        for delivery in self._deliveries:
            delivery.flush()

    @phase("tracking")
    def close(self, status: str, artifacts: list[Path]) -> None:
        """Send the rest, the files, and the status: FINISHED, KILLED (stopped, will continue) or FAILED.

        Waits for a server for some seconds at most. `ratc_runtime sync` sends the records that remain.
        """
        if self._monitor is not None:
            self._monitor.close()
        for path in artifacts:
            self._artifact(path)
        self._put({"kind": "status", "status": status, "time": int(time.time() * 1000)})
        self.flush()
        left = {delivery.backend.name: number for delivery in self._deliveries if (number := delivery.close())}
        if left:
            counts = ", ".join(f"{counted(number, 'record')} for {name}" for name, number in left.items())
            warn(f"not sent: {counts}. Send them with: python -m ratc_runtime sync {self._output_dir}")

    def describe(self) -> list[str]:
        """Return the places of the run, one line each."""
        return [delivery.backend.describe() for delivery in self._deliveries]
