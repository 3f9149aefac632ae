"""MLflow: one run for every executed training, completed by its evaluation.

The only module that imports mlflow, and only when a store is opened. Reads and writes the store at `MLFLOW_TRACKING_URI`,
or else mlflow.db and mlartifacts/ in the repository's root, also from DVC's temporary workspaces. Guarantees that a run ends
FINISHED, or FAILED or KILLED with the reason in the tag `failure`, unless the process itself is killed, and that metrics
reach the store in batches, so that training does not wait for each.
"""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock
from pydantic import Field

from truefit.config import Settings
from truefit.errors import TrackingError
from truefit.table import Table

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

# Seconds that an epoch's metrics may wait before they are sent together with those that follow.
FLUSH_SECONDS = 5.0
# What the store takes at once.
METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100

DIGEST_TAG = "state_dict.sha256"

T = TypeVar("T")


class TrackSettings(Settings):
    """Section `track`: where in MLflow the runs go, and what they are called."""

    experiment: str = Field("truefit", min_length=1)
    run_name: str | None = Field(None, min_length=1)


def repository_root() -> Path:
    """Return the root of the main repository, which DVC names also inside a temporary workspace."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


class Run:
    """An MLflow run that is being written to."""

    def __init__(self, client: "MlflowClient", run_id: str, name: str) -> None:
        self._client = client
        self._metrics: list[Any] = []
        self._sent = time.monotonic()
        self.run_id = run_id
        self.name = name

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step; they wait for the first call more than FLUSH_SECONDS after the last sending."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._metrics += [Metric(key, value, now, step) for key, value in metrics.items()]
        if time.monotonic() - self._sent > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the metrics that wait."""
        for batch in _batches(self._metrics, METRICS_A_BATCH):
            self._client.log_batch(self.run_id, metrics=batch)
        self._metrics, self._sent = [], time.monotonic()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record params, in the spelling that JSON gives them; MLflow cuts what is longer than 6000 characters."""
        from mlflow.entities import Param

        entities = [Param(key, value if isinstance(value, str) else json.dumps(value)) for key, value in params.items()]
        for batch in _batches(entities, PARAMS_A_BATCH):
            self._client.log_batch(self.run_id, params=batch)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a tag that is there already is replaced."""
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_dataset(self, table: Table) -> None:
        """Record the CSV that the table was prepared from as the run's dataset, with the digest of all its bytes."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        columns = [{"type": "double", "name": name, "required": True} for name in table.columns]
        dataset = Dataset(
            name=Path(table.csv.path).name,
            digest=table.csv.sha256[:36],  # as much as MLflow takes
            source_type="local",
            source=json.dumps({"uri": table.csv.path}),
            schema=json.dumps({"mlflow_colspec": columns}),
            profile=json.dumps({"num_rows": sum(table.rows.values()), **table.rows}),
        )
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def log_artifacts(self, artifacts: Mapping[str, Path | bytes]) -> None:
        """Record files, or bytes, under the paths that they are to have among the run's artifacts."""
        for name, content in artifacts.items():
            folder = str(Path(name).parent)
            if isinstance(content, Path):
                self._client.log_artifact(self.run_id, str(content), folder)
                continue
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary, Path(name).name)
                path.write_bytes(content)
                self._client.log_artifact(self.run_id, str(path), folder)


class Store:
    """An experiment in an MLflow store, created when it is opened."""

    def __init__(self, settings: TrackSettings) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        # The store tells of each table that it creates, which is no news to anyone.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        root = repository_root()
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
        self._settings = settings
        scratch = root / ".truefit"
        scratch.mkdir(exist_ok=True)
        # Two processes that open a fresh SQLite store at once would both create its tables.
        try:
            with self._errors(), FileLock(scratch / "store.lock"):
                self._client: MlflowClient = MlflowClient(self.uri)
                self._experiment_id = self._experiment(root)
        except ImportError as error:
            raise TrackingError(f"MLflow store {_shown(self.uri)}: its driver is not installed: {error}") from None

    @contextmanager
    def start_run(self, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """Open a run, named by the settings or else `name`; end it FINISHED, or FAILED when the block raises.

        Raises TrackingError when the store does not answer.
        """
        from mlflow.tracking.context.registry import resolve_tags

        experiment = os.environ.get("DVC_EXP_NAME")
        full_name = self._settings.run_name or (f"{name} ({experiment})" if experiment else name)
        tags = {**tags, **({"dvc.exp": experiment} if experiment else {})}
        with self._errors():
            # MLflow adds who started the run and from which script.
            created = self._client.create_run(self._experiment_id, tags=resolve_tags(tags), run_name=full_name)
            run = Run(self._client, created.info.run_id, full_name)
            try:
                yield run
                run.flush()
            except BaseException as error:
                self._fail(run, error)
                raise
            self._client.set_terminated(run.run_id, "FINISHED")

    def _fail(self, run: Run, error: BaseException) -> None:
        """End a run with its reason; a store that does not answer here either must not hide that reason."""
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):
            run.flush()
            run.set_tags({"failure": (str(error) or type(error).__name__)[:5000]})
            self._client.set_terminated(run.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")

    @contextmanager
    def resume_run(self, digest: str) -> Iterator[Run]:
        """Open the latest run whose model has the state_dict digest, or a run of its own where there is none.

        Where several runs ended with the same bits, the one of the current DVC experiment is preferred.
        Raises TrackingError when the store does not answer.
        """
        with self._errors():
            found = self._runs_of(digest)
        if not found:
            with self.start_run(f"evaluation of {digest[:8]}", {DIGEST_TAG: digest}) as run:
                yield run
            return
        experiment = os.environ.get("DVC_EXP_NAME")
        chosen = next((run for run in found if run.data.tags.get("dvc.exp") == experiment), found[0])
        with self._errors():
            run = Run(self._client, chosen.info.run_id, chosen.info.run_name or "")
            yield run
            run.flush()

    def _runs_of(self, digest: str) -> "Sequence[MlflowRun]":
        """Return the finished runs with the state_dict digest, the latest first."""
        where = f"tags.`{DIGEST_TAG}` = '{digest}' and attributes.status = 'FINISHED'"
        found: Sequence[MlflowRun] = self._client.search_runs(
            [self._experiment_id], where, order_by=["attributes.start_time DESC"]
        )
        return found

    def _experiment(self, root: Path) -> str:
        """Return the experiment's id, creating it with its artifacts beside the store where that is a local file."""
        name = self._settings.experiment
        here = (root / "mlartifacts").as_uri()
        known = self._client.get_experiment_by_name(name)
        if known is None:
            local = self.uri.startswith(("sqlite:", "file:"))
            # Left alone, a local store would take the current folder, which may be DVC's and soon be gone.
            return str(self._client.create_experiment(name, here if local else None))
        fault = ""
        if known.lifecycle_stage == "deleted":
            fault = f"is deleted; `mlflow experiments restore --experiment-id {known.experiment_id}`"
        elif not os.environ.get("MLFLOW_TRACKING_URI") and not known.artifact_location.startswith(here):
            fault = f"keeps its artifacts in {known.artifact_location}; move the repository back"
        if fault:
            raise TrackingError(f"MLflow store {_shown(self.uri)}: {name!r} {fault}, or change track.experiment")
        return str(known.experiment_id)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn MLflow's own errors into one line that names the store."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise TrackingError(_shown(f"MLflow store {self.uri}: {str(error).splitlines()[0]}")) from error


def _shown(text: str) -> str:
    """Return the text without the user's name and password that an address in it may hold."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _batches(items: list[T], size: int) -> Iterable[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
