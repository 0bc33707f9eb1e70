"""MLflow: a server named by MLFLOW_TRACKING_URI, else a SQLite file in the output folder.

Every record can be sent again: MLflow keeps one point of equal metric, step, time and value, equal parameters are
accepted, tags and files are replaced. A run is found by the tag `ratc.run`. So if a server answers a request for a new
run too late, no second run is made.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ratc_runtime.errors import warn
from ratc_runtime.tracking.interface import Backend, Record

PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
RUN_TAG = "ratc.run"
#: Short timeouts, unless the user has set others: MLflow's own are minutes.
SHORT_WAITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",  # seconds
}
#: Errors that a server would return again for the same record.
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
#: Characters that MLflow refuses in the name of a parameter, such as in the `<module>` of own code.
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")


def prepare() -> None:
    """Set MLflow's environment variables, before it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name, value in SHORT_WAITS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    # Its store tells of every table it creates, its client of every attempt.
    for logger in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def without_secrets(uri: str) -> str:
    """Return a URI without user and password."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=host)) if parts.netloc else uri


class Mlflow(Backend):
    """One run of MLflow's for all starts of a run."""

    name = "MLflow"
    switch = "mlflow"
    journal = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connect_to(os.environ.get("MLFLOW_TRACKING_URI"))

    def connect_to(self, given: str | None) -> None:
        """Set the store's address; without one, a file in the output folder."""
        self.local = not given
        self.uri = given or f"sqlite:///{self.about.output_dir.resolve() / 'mlflow.db'}"
        if self.uri.startswith(("sqlite:", "file:", "/")):
            self.patience = self.patience_after_failure = 60.0  # no network to wait for

    def load(self) -> None:
        """Import MLflow and its monitors of the machine."""
        prepare()
        import mlflow.entities
        import mlflow.tracking  # noqa: F401

        from ratc_runtime.tracking import system

        self.monitors = system.monitors()

    def open(self) -> None:
        """Find the run, or create it with its parameters."""
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri)
        shown = without_secrets(self.uri)
        if self.state.get("uri") != shown:
            self.state.update(uri=shown, run_id=None, described=False)
            self.save()
        if not self._exists(self.state.get("run_id")):
            self.state.update(run_id=self._find() or self._create(), described=False)
            self.save()
        if not self.state.get("described"):
            self._describe()
            self.state["described"] = True
            self.save()

    def _exists(self, run_id: str | None) -> bool:
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return False
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code in GONE:
                return False
            raise

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.about.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            artifacts = (self.about.output_dir.resolve() / "mlartifacts").as_uri() if self.local else None
            try:
                return str(self._client.create_experiment(name, artifacts))
            except MlflowException as error:  # another run was quicker
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise error
        return str(found.experiment_id)

    def _find(self) -> str | None:
        found = self._client.search_runs([self._experiment()], f"tags.`{RUN_TAG}` = '{self.about.id}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _create(self) -> str:
        tags = {RUN_TAG: self.about.id}
        return str(self._client.create_run(self._experiment(), tags=tags, run_name=self.about.name).info.run_id)

    def _describe(self) -> None:
        self._params(self.about.params)
        if self.about.description:
            self._client.set_tag(self._id, "mlflow.note.content", self.about.description)

    @property
    def _id(self) -> str:
        return str(self.state["run_id"])

    def send(self, records: list[Record]) -> None:
        """Send records in order. Consecutive metrics go in one request."""
        metrics: list[Record] = []
        for record in [*records, None]:
            if record is not None and record["kind"] == "metrics":
                metrics.append(record)
                continue
            if metrics:
                self._accepted(metrics)
                metrics = []
            if record is not None:
                self._accepted([record])

    def _accepted(self, records: list[Record]) -> None:
        """Send records. Warn of records that the server will never accept, and skip them."""
        from mlflow.exceptions import MlflowException

        try:
            self._send(records)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            if len(records) > 1:
                for record in records:
                    self._accepted([record])
            else:
                kind, text = records[0]["kind"], " ".join(str(error).split())
                warn(f"MLflow refuses {kind} {list(records[0].get('values', ''))!s:.100}: {text:.300}")

    def _send(self, records: list[Record]) -> None:
        first = records[0]
        if first["kind"] == "metrics":
            self._metrics(records)
        elif first["kind"] == "params":
            self._params(first["values"])
        elif first["kind"] == "tags":
            from mlflow.entities import RunTag

            self._client.log_batch(self._id, tags=[RunTag(name, value) for name, value in first["values"].items()])
        elif first["kind"] == "artifact":
            self._artifact(first["path"])
        elif first["status"] == "RUNNING":
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._client.set_terminated(self._id, first["status"], first.get("time"))

    def _metrics(self, records: list[Record]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, value, record["time"], record["step"])
            for record in records
            for name, value in record["values"].items()
        ]
        for at in range(0, len(points), METRICS_PER_CALL):
            self._client.log_batch(self._id, metrics=points[at : at + METRICS_PER_CALL])

    def _params(self, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(_NOT_IN_NAMES.sub("_", name), value) for name, value in values.items()]
        for at in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(self._id, params=params[at : at + PARAMS_PER_CALL])

    def _artifact(self, relative: str) -> None:
        path = self.about.output_dir / relative
        if path.is_dir():
            self._client.log_artifacts(self._id, str(path), path.name)
        elif path.exists():
            self._client.log_artifact(self._id, str(path))

    def describe(self) -> str:
        """Return the store and the run."""
        run_id = self.state.get("run_id")
        return f"MLflow: {without_secrets(self.uri)}" + (f", run {run_id}" if run_id else "")
