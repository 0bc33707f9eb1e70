"""MLflow and TensorBoard. Tracking serves a run: where it fails it warns once, and training goes on."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ratc_runtime.errors import warn
from ratc_runtime.lock import Lock
from ratc_runtime.results import finite

PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
MAX_PARAM_LENGTH = 6000


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested mappings as dotted names with text values, lists written as they are."""
    if isinstance(value, dict) and value:
        flat: dict[str, str] = {}
        for key, item in value.items():
            flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: str(value)[:MAX_PARAM_LENGTH]}


class Tracker:
    """Logs one run, from the main process; every other process has one that does nothing.

    Metrics are kept until `flush`, because a call per metric would cost more than a small training step.
    `run_id` is MLflow's, so that a continued run goes on in the same place.
    """

    def __init__(self, lock: Lock, output_dir: Path, main: bool, run_id: str | None) -> None:
        self.run_id = run_id
        self._client: Any = None
        self._writer: Any = None
        self._metrics: list[tuple[str, float, int, int]] = []
        if main and lock.logging.mlflow:
            self._attempt("MLflow", lambda: self._start_mlflow(lock, output_dir))
        if main and lock.logging.tensorboard:
            self._attempt("TensorBoard", lambda: self._start_tensorboard(output_dir))

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # servers, data bases and disks fail in ways of their own
            text = " ".join(str(error).split())
            warn(f"{name} is off for the rest of this run: {type(error).__name__}: {text:.300}")
            if name == "MLflow":
                self._client = None
            else:
                self._writer = None

    def _start_mlflow(self, lock: Lock, output_dir: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import logging

        # Its store tells of every table it creates.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        given = os.environ.get("MLFLOW_TRACKING_URI")
        client = MlflowClient(tracking_uri=given or f"sqlite:///{output_dir.resolve() / 'mlflow.db'}")
        if self.run_id is not None:
            try:
                client.update_run(self.run_id, status="RUNNING")
            except Exception:  # another store than last time: this start gets a run of its own
                self.run_id = None
        if self.run_id is None:
            name = lock.logging.mlflow_experiment_name
            experiment = client.get_experiment_by_name(name)
            artifacts = None if given else (output_dir.resolve() / "mlartifacts").as_uri()
            number = experiment.experiment_id if experiment else client.create_experiment(name, artifacts)
            self.run_id = client.create_run(number, run_name=lock.experiment_name).info.run_id
            flat = flatten(dataclasses.asdict(lock))
            params = [Param(key, value) for key, value in flat.items()]
            tags = [RunTag("mlflow.note.content", lock.description)] if lock.description else []
            for at in range(0, len(params), PARAMS_PER_CALL):
                client.log_batch(self.run_id, params=params[at : at + PARAMS_PER_CALL], tags=tags if at == 0 else [])
        self._client = client

    def _start_tensorboard(self, output_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(output_dir / "tensorboard"))

    def note(self, parameters: Mapping[str, str]) -> None:
        """Add parameters that only the run could tell; one that is there already must say the same."""
        if self._client is not None and parameters:
            self._attempt("MLflow", lambda: self._note(parameters))

    def _note(self, parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        self._client.log_batch(self.run_id, params=[Param(key, value) for key, value in parameters.items()])

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Note metrics at an optimizer step (counted over the whole run); None and NaN are left out."""
        now = int(time.time() * 1000)
        for name, value in finite(dict(values)).items():
            if value is None:
                continue
            if self._client is not None:
                self._metrics.append((name, float(value), now, step))
            if self._writer is not None:
                self._attempt(
                    "TensorBoard",
                    lambda n=name, v=value: self._writer.add_scalar(n, v, step),  # type: ignore[misc]
                )

    def flush(self) -> None:
        """Send the metrics noted since the last call."""
        if self._client is not None and self._metrics:
            self._attempt("MLflow", self._send)
            self._metrics.clear()
        if self._writer is not None:
            self._attempt("TensorBoard", self._writer.flush)

    def _send(self) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(*metric) for metric in self._metrics]
        for at in range(0, len(metrics), METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=metrics[at : at + METRICS_PER_CALL])

    def close(self, status: str, artifacts: list[Path]) -> None:
        """Send what is left, the files, and the status: FINISHED, KILLED (stopped, will go on) or FAILED."""
        self.flush()
        if self._client is not None:
            self._attempt("MLflow", lambda: self._close_mlflow(status, artifacts))
        if self._writer is not None:
            self._attempt("TensorBoard", self._writer.close)

    def _close_mlflow(self, status: str, artifacts: list[Path]) -> None:
        for path in artifacts:
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), path.name)
            elif path.exists():
                self._client.log_artifact(self.run_id, str(path))
        self._client.set_terminated(self.run_id, status)
