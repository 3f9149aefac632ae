"""The MLflow store: where it is, opened once, and its experiments.

It is mlflow.db in the repository's root, with the artifacts beside it, also from DVC's temporary workspaces; or the one that
`MLFLOW_TRACKING_URI` names. No message has a password in it.
"""

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
from truefit.tracking.names import EXCESS_MSE, TEST_PREFIX, VALIDATION_LOSS

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
    """The MLflow store at `uri`; `address` is None for the repository's own, and without a password like `redacted_uri`."""

    def __init__(self) -> None:
        self.root = repository_root()
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.address = redacted(given) if given else None
        self.uri = given or f"sqlite:///{self.root / 'mlflow.db'}"
        self.redacted_uri = redacted(self.uri)
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}

    def connect(self) -> "MlflowClient":
        """Return the client, made and the repository's own store created at the first call."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            # A failed request is repeated by the uploader, which nobody waits for.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
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
        """Return the experiment's id, creating it with its artifacts beside the store where that is a local file.

        Raises TrackingError where it cannot take a run, StoreAwayError where the store does not answer.
        """
        if name not in self._experiments:
            self._experiments[name] = self._find_or_create(name)
        return self._experiments[name]

    def _find_or_create(self, name: str) -> str:
        here = (self.root / "mlartifacts").as_uri()
        with self.errors(), FileLock(self.root / ".truefit/experiment.lock"):
            client = self.connect()
            known = client.get_experiment_by_name(name)
            if known is None:
                # Left alone, a local store would take the current folder, which may be DVC's and soon be gone.
                tags = {VIEW_TAG: _view()}
                return client.create_experiment(name, here if self._is_local else None, tags)
        fault = ""
        if known.lifecycle_stage == "deleted":
            fault = f"is deleted; `mlflow experiments restore --experiment-id {known.experiment_id}`"
        elif self.address is None and not known.artifact_location.startswith(here):
            fault = f"keeps its artifacts in {known.artifact_location}; move the repository back"
        if fault:
            raise TrackingError(f"MLflow store {self.redacted_uri}: {name!r} {fault}, or change track.experiment")
        return str(known.experiment_id)

    @property
    def _is_local(self) -> bool:
        return self.uri.startswith(("sqlite:", "file:"))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn MLflow's errors into a TrackingError that names the store, a StoreAwayError where it does not answer."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except SQLAlchemyError as error:  # which MLflow lets through where it opens a database
            raise TrackingError(redacted(f"MLflow store {self.uri}: {str(error).splitlines()[0]}")) from error
        except MlflowException as error:
            status = error.get_http_status_code()  # type: ignore[no-untyped-call]
            away = not self._is_local and (status == 429 or status >= 500)
            kind = StoreAwayError if away else TrackingError
            raise kind(redacted(f"MLflow store {self.uri}: {str(error).splitlines()[0]}")) from error

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run, all or none."""
        from mlflow.entities import RunTag

        self.connect().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def repository_root() -> Path:
    """Return the root of the main repository, which DVC names also inside a temporary workspace."""
    here = Path.cwd()
    found = next((folder for folder in [here, *here.parents] if (folder / ".dvc").is_dir()), here)
    return Path(os.environ.get("DVC_ROOT", found)).resolve()


def _view() -> str:
    """Return the view of the table of runs, as MLflow keeps it in a tag of the experiment."""
    state = json.dumps({"selectedColumns": VIEW_COLUMNS})
    return json.dumps({"name": VIEW_NAME, "createdAt": now(), "updatedAt": now(), "state": state})
