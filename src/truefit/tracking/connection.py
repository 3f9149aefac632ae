"""The MLflow store: mlflow.db in the repository's root, also from DVC's temporary workspaces, or `MLFLOW_TRACKING_URI`."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from truefit.core.errors import StoreAwayError, TrackingError
from truefit.core.redaction import redacted
from truefit.tracking.address import database_file, is_direct, normalised
from truefit.tracking.database import open_store
from truefit.tracking.names import EXCESS_MSE, RERUN_EXPERIMENT, TEST_PREFIX, VALIDATION_LOSS
from truefit.tracking.records import now

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

# A view that MLflow's table of runs offers under "Views", as MLflow 3.17 itself saves one. A browser that has never been there
# would show no param and no metric.
VIEW_TAG, VIEW_NAME = "mlflow.sharedViewState.truefit", "Settings and scores"
VIEW_COLUMNS = (
    *(f"params.`train.{key}`" for key in ("model.name", "engine", "optimizer.name", "optimizer.lr", "batch_size")),
    *(f"metrics.`{name}`" for name in (VALIDATION_LOSS, f"{TEST_PREFIX}mse", EXCESS_MSE)),
)


class Connection:
    """The MLflow store at `uri`; `address`, without a password like `redacted_uri`, is None for the repository's own."""

    def __init__(self) -> None:
        self.root = repository_root()
        own = f"sqlite:///{self.root / 'mlflow.db'}"
        self.uri = self._normalised(os.environ.get("MLFLOW_TRACKING_URI") or own)
        self.redacted_uri = redacted(self.uri)
        self.address = None if self.uri == own else self.redacted_uri
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}

    def connect(self) -> "MlflowClient":
        """Return the client; the first call makes it, and the store where that is a database without tables."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            # A failed request is repeated by the uploader, which nobody waits for.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
            # MLflow would print it with the password, and in the middle of a line.
            os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
            # Bars of downloads would stand between the lines of a report.
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            try:
                self._client = open_store(self.uri)
            except ImportError as error:
                raise TrackingError(f"MLflow store {self.redacted_uri}: its driver is not installed: {error}") from None
        return self._client

    def experiment(self, name: str) -> str:
        """Return the id of the experiment, which is made if need be; raises TrackingError where it cannot take a run."""
        if name not in self._experiments:
            self._experiments[name] = os.environ.get(RERUN_EXPERIMENT) or self._find_or_create(name)
        return self._experiments[name]

    def _find_or_create(self, name: str) -> str:
        with self.errors():
            known = self.connect().get_experiment_by_name(name) or self._create(name)
        self._refuse_unfit(known)
        return str(known.experiment_id)

    def _create(self, name: str) -> "Experiment":
        """Return the experiment after creating it, which another clone may do in the same moment."""
        from mlflow.exceptions import MlflowException

        client, location = self.connect(), None
        if is_direct(self.uri):
            # Left alone, MLflow would take the current folder, which may be DVC's and soon be gone.
            location = self._artifacts.as_uri()
            self._artifacts.mkdir(parents=True, exist_ok=True)  # so that another clone on this machine sees that it is there
        state = json.dumps({"selectedColumns": VIEW_COLUMNS})
        view = json.dumps({"name": VIEW_NAME, "createdAt": now(), "updatedAt": now(), "state": state})
        try:
            return client.get_experiment(client.create_experiment(name, location, {VIEW_TAG: view}))
        except MlflowException as error:
            found = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
            if found is None:
                raise
            return found

    def _refuse_unfit(self, experiment: "Experiment") -> None:
        location = str(experiment.artifact_location)
        folder = Path(unquote(urlsplit(location).path)) if location.startswith("file:") else None
        if experiment.lifecycle_stage == "deleted":
            fault = f"is deleted; `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        elif self.address is None and not location.startswith(self._artifacts.as_uri()):
            fault = f"keeps its artifacts in {location}; move the repository back"
        elif is_direct(self.uri) and location.startswith("mlflow-artifacts:"):
            fault = f"keeps its artifacts at a server, {location}; give MLFLOW_TRACKING_URI that server's address"
        elif is_direct(self.uri) and folder and not (folder.exists() or folder.parent.exists()):
            fault = f"keeps its artifacts in {location}, which this machine does not have; share that folder, use a server"
        else:
            return
        raise TrackingError(f"MLflow store {self.redacted_uri}: {experiment.name!r} {fault}, or change track.experiment")

    @property
    def _artifacts(self) -> Path:
        """The folder of artifacts for an experiment that is made here: beside the database where that is a file."""
        return (database_file(self.uri) or self.root / "mlflow.db").with_name("mlartifacts")

    def _normalised(self, uri: str) -> str:
        # Of a path, DVC's temporary workspaces mean the repository, and a user the current folder.
        return normalised(uri, self.root if "DVC_ROOT" in os.environ else Path.cwd())

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn MLflow's errors into a TrackingError, a StoreAwayError where the store does not answer."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError, SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError) as error:  # MLflow lets the latter through where it opens a database
            if isinstance(error, MlflowException):
                status = error.get_http_status_code()  # type: ignore[no-untyped-call]
                away = status == 429 or status >= 500
            else:
                away = isinstance(error, OperationalError)
            # What is on this machine answers at once, or never.
            kind = StoreAwayError if away and not self.uri.startswith(("sqlite", "file:", "/")) else TrackingError
            raise kind(f"MLflow store {self.redacted_uri}: {redacted(str(error).splitlines()[0])}") from error

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run, all or none."""
        from mlflow.entities import RunTag

        self.connect().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def repository_root() -> Path:
    """Return the main repository's root, which DVC names also inside a temporary workspace."""
    here = Path.cwd()
    found = next((folder for folder in [here, *here.parents] if (folder / ".dvc").is_dir()), here)
    return Path(os.environ.get("DVC_ROOT", found)).resolve()
