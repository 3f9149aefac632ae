"""The MLflow store: mlflow.db in the repository's root, also from DVC's temporary workspaces, or `MLFLOW_TRACKING_URI`."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from truefit.core.errors import StoreAwayError, TrackingError
from truefit.core.files import atomic_path
from truefit.core.redaction import redacted
from truefit.tracking.journal import now
from truefit.tracking.names import EXCESS_MSE, RERUN_EXPERIMENT, TEST_PREFIX, VALIDATION_LOSS

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.address = redacted(given) if given else None
        self.uri = given or f"sqlite:///{self.root / 'mlflow.db'}"
        self.redacted_uri = redacted(self.uri)
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}

    def connect(self) -> "MlflowClient":
        """Return the client; the first call makes it, and the repository's own store."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            # A failed request is repeated by the uploader, which nobody waits for.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
            # Bars of downloads would stand between the lines of a report.
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            from mlflow import MlflowClient

            # The store tells of each table that it creates, which is no news to anyone.
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            try:
                # Two processes that open a fresh SQLite store at once would both create its tables.
                with FileLock(self.root / ".truefit/store.lock"):
                    database = self.root / "mlflow.db"
                    if self.address is None and not database.exists():
                        # A kill in the middle of the creation would leave a store that nothing opens any more.
                        with atomic_path(database) as temporary:
                            MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
                    client = MlflowClient(self.uri)
                    client.search_experiments(max_results=1)
            except ImportError as error:
                raise TrackingError(f"MLflow store {self.redacted_uri}: its driver is not installed: {error}") from None
            self._client = client
        return self._client

    def experiment(self, name: str) -> str:
        """Return the id of the experiment, which is made if need be; raises TrackingError where it cannot take a run."""
        if name not in self._experiments:
            self._experiments[name] = os.environ.get(RERUN_EXPERIMENT) or self._find_or_create(name)
        return self._experiments[name]

    def _find_or_create(self, name: str) -> str:
        here = (self.root / "mlartifacts").as_uri()
        with self.errors(), FileLock(self.root / ".truefit/experiment.lock"):
            client = self.connect()
            known = client.get_experiment_by_name(name)
            if known is None:
                # Left alone, a local store would take the current folder, which may be DVC's and soon be gone.
                state = json.dumps({"selectedColumns": VIEW_COLUMNS})
                view = json.dumps({"name": VIEW_NAME, "createdAt": now(), "updatedAt": now(), "state": state})
                return client.create_experiment(name, here if self._is_local else None, {VIEW_TAG: view})
        if known.lifecycle_stage == "deleted":
            fault = f"is deleted; `mlflow experiments restore --experiment-id {known.experiment_id}`"
        elif self.address is None and not known.artifact_location.startswith(here):
            fault = f"keeps its artifacts in {known.artifact_location}; move the repository back"
        else:
            return str(known.experiment_id)
        raise TrackingError(f"MLflow store {self.redacted_uri}: {name!r} {fault}, or change track.experiment")

    @property
    def _is_local(self) -> bool:
        return self.uri.startswith(("sqlite:", "file:"))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn MLflow's errors into a TrackingError, a StoreAwayError where the store does not answer."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError) as error:  # MLflow lets the latter through where it opens a database
            kind = TrackingError
            if isinstance(error, MlflowException) and not self._is_local:
                status = error.get_http_status_code()  # type: ignore[no-untyped-call]
                kind = StoreAwayError if status == 429 or status >= 500 else TrackingError
            raise kind(redacted(f"MLflow store {self.uri}: {str(error).splitlines()[0]}")) from error

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run, all or none."""
        from mlflow.entities import RunTag

        self.connect().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def repository_root() -> Path:
    """Return the main repository's root, which DVC names also inside a temporary workspace."""
    here = Path.cwd()
    found = next((folder for folder in [here, *here.parents] if (folder / ".dvc").is_dir()), here)
    return Path(os.environ.get("DVC_ROOT", found)).resolve()
