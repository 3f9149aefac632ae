"""MLflow: one run for every executed training, completed by its evaluation.

The only module that imports mlflow. Writes each run's journal, and sends it to the store at `MLFLOW_TRACKING_URI`, or else to
mlflow.db and mlartifacts/ in the repository's root, also from DVC's temporary workspaces. Guarantees that no step of a
training waits for the store (its start and its end may, for a bounded time), that whatever the store has not acknowledged
stays in the journal, and that sending it again adds nothing: a run is found by its key, and the same metric of the same time
and step counts once.
"""

import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from filelock import FileLock
from pydantic import Field

from truefit.config import Settings
from truefit.errors import StoppedError, StoreAwayError, TrackingError, is_final
from truefit.files import atomic_path
from truefit.journal import Artifact, Header, Journal, Metrics, Record, Sent, Status, Values, now, pending
from truefit.table import Table

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

# Seconds that records may wait before they are sent together with those that follow.
FLUSH_SECONDS = 5.0
# A store that fails is tried again after 1, 2, 4 … seconds, and at the end of the stage.
LONGEST_PAUSE = 60.0
# Seconds without an answer, at the end of the stage, after which it is given up.
PATIENCE = 60.0
# What the store takes at once.
METRICS_A_BATCH, VALUES_A_BATCH = 1000, 100

DIGEST_TAG = "state_dict.sha256"
KEY_TAG = "truefit.run"
NOTE_TAG = "mlflow.note.content"  # what MLflow shows as the description, in markdown
CHANGED_TAG = "changed"  # the files that changed while the training ran
# A view that MLflow's table of runs offers under "Views", as MLflow 3.17 itself saves one. A browser that has never been there
# would show no param and no metric.
VIEW_TAG, VIEW_NAME = "mlflow.sharedViewState.truefit", "Settings and scores"
VIEW_COLUMNS = (
    *(f"params.`train.{key}`" for key in ("model.name", "engine", "optimizer.name", "optimizer.lr", "batch_size")),
    *(f"metrics.`{name}`" for name in ("validation_loss", "test_mse", "excess_mse")),
)
# By these MLflow knows of a model among the artifacts of a run: the folder, and the tag that tells of it.
MODEL_FOLDER, MODELS_TAG = "model", "mlflow.log-model.history"
RANGE_TAG = "lr_range"  # by which a range test is told from a training
OMITTED_TAG = "git.omitted"  # uncommitted files that were too large for the record
RERUN_TAG, RERUN_KEY_TAG = "rerun.of", "rerun.key"
# By these a run is told from others that ended with the same bits.
_PURPOSE_TAGS = ("dvc.exp", RERUN_KEY_TAG)


class TrackSettings(Settings):
    """Section `track`: where in MLflow the runs go, and what they are called."""

    experiment: str = Field("truefit", min_length=1)
    run_name: str | None = Field(None, min_length=1)
    largest_file_mb: float = Field(10.0, ge=0)
    log_model: bool = True

    @property
    def largest_file(self) -> int:
        """The bytes of the largest uncommitted file that the record holds."""
        return int(self.largest_file_mb * 1_000_000)


@dataclass(frozen=True)
class Origin:
    """All that a training starts from: params, tags, the table, and artifacts by their paths in the run."""

    params: Mapping[str, Any]
    tags: Mapping[str, str]
    table: Table
    artifacts: Mapping[str, bytes]

    def records(self) -> list[Values]:
        """Return it as records."""
        params = {key: spell(value) for key, value in self.params.items()}
        columns = [{"type": "double", "name": name, "required": True} for name in self.table.columns]
        dataset = {
            "name": Path(self.table.csv.path).name,
            "digest": self.table.csv.sha256[:36],  # as much as MLflow takes
            "source_type": "local",
            "source": json.dumps({"uri": self.table.csv.path}),
            "schema": json.dumps({"mlflow_colspec": columns}),
            "profile": json.dumps({"num_rows": sum(self.table.rows.values()), **self.table.rows}),
        }
        tags = Values(kind="tags", values=dict(self.tags))
        return [Values(kind="params", values=params), Values(kind="dataset", values=dataset), tags]


def spell(value: Any) -> str:
    """Return the text that MLflow has of a param: as JSON spells it, but for text, which stays."""
    return value if isinstance(value, str) else json.dumps(value)


def repository_root() -> Path:
    """Return the root of the main repository, which DVC names also inside a temporary workspace."""
    here = Path.cwd()
    found = next((folder for folder in [here, *here.parents] if (folder / ".dvc").is_dir()), here)
    return Path(os.environ.get("DVC_ROOT", found)).resolve()


class Run:
    """A run that is being written to; `run_id` is the store's, known when the block that writes to it has ended."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        recorded = [record.step for record, _ in journal.read() if isinstance(record, Metrics)]
        self._recorded = max(recorded, default=-1)
        self.name = journal.header.name
        self.run_id: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step, but for a step that an interrupted execution has recorded already."""
        if step > self._recorded:
            self._journal.append(Metrics(step=step, time=now(), values=dict(metrics)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a tag that is there already is replaced."""
        self._journal.append(Values(kind="tags", values=dict(tags)))

    def log_artifacts(self, artifacts: Mapping[str, bytes]) -> None:
        """Record contents under the paths that they are to have among the run's artifacts."""
        for name, content in artifacts.items():
            self._journal.append_artifact(name, content)

    def log_model(self, loader: ModuleType, model: Sequence[Path], example: "pd.DataFrame", dtype: str) -> None:
        """Record an MLflow model, which can be loaded and served: the files of a model, and the code that rebuilds it.

        The module `loader` has the function `_load_pyfunc`, which MLflow calls with the files' folder, the names of the
        `MODULES` beside it that it needs, its own among them, and those of the `PACKAGES`. `example` holds some rows of the
        features, in float64; the predictions are of `dtype`.
        """
        files, listed = _pack_model(loader, model, example, dtype)
        self.log_artifacts(files)
        self.set_tags({MODELS_TAG: json.dumps([listed])})

    def __str__(self) -> str:
        return f"MLflow run {self.name!r}, {self.run_id or f'which waits in {self._journal.folder}'}"


class Store:
    """The MLflow store, and the journals of the runs that it does not have yet."""

    def __init__(self) -> None:
        self._root = repository_root()
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.address = shown(given) if given else None
        self.uri = given or f"sqlite:///{self._root / 'mlflow.db'}"
        self.shown = shown(self.uri)
        self._runs = self._root / ".truefit/runs"
        self._runs.mkdir(parents=True, exist_ok=True)
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self.calls = 0  # that the store has answered

    @contextmanager
    def training_run(
        self, track: TrackSettings, name: str, fingerprint: str, read_origin: Callable[[], Origin]
    ) -> Iterator[Run]:
        """Begin a run, or go on with the one of an interrupted training that has the fingerprint; end it with its reason.

        It is called as in the settings, or else `name`. Raises TrackingError when the store is there and cannot take the run.
        """
        with suppress(StoreAwayError):
            self.experiment(track.experiment)
        journal = self._open_run(fingerprint)
        if journal is None:
            origin = read_origin()
            header = self._header(track, name, fingerprint=fingerprint)
            journal = Journal.create(self._runs, header, origin.records(), origin.artifacts)
        else:
            journal.append(Status(status="RUNNING", time=now(), final=False))
            journal.append(Values(kind="tags", values=_experiment_tags()))
        with self._recording(journal) as run:
            yield run

    @contextmanager
    def range_test_run(self, track: TrackSettings, name: str, origin: Origin) -> Iterator[Run]:
        """Begin the run of a learning-rate range test, which nothing goes on with; end it with its reason.

        It is called `name`. Raises TrackingError when the store is there and cannot take the run.
        """
        with suppress(StoreAwayError):
            self.experiment(track.experiment)
        header = self._header(track.model_copy(update={"run_name": None}), name)
        tags = Values(kind="tags", values={RANGE_TAG: "true"})
        with self._recording(Journal.create(self._runs, header, [*origin.records(), tags], origin.artifacts)) as run:
            yield run

    @contextmanager
    def evaluation_run(self, track: TrackSettings, digest: str) -> Iterator[Run]:
        """Add to the latest run whose model has the state_dict digest, or to a run of its own where there is none.

        Where several runs ended with the same bits, the one of the current DVC experiment or rerun is preferred.
        Raises TrackingError when the store is there and cannot take the run.
        """
        with suppress(StoreAwayError):
            self.experiment(track.experiment)
        header = self._header(track, f"evaluation of {digest[:8]}", completes=digest)
        journal = Journal.create(self._runs, header, [Values(kind="tags", values={DIGEST_TAG: digest})], {})
        with self._recording(journal) as run:
            yield run

    def _open_run(self, fingerprint: str) -> Journal | None:
        """Return the journal of an interrupted training that has the fingerprint."""
        for journal in pending(self._runs):
            # One that is over may be sent and removed by another process in this moment.
            with suppress(FileNotFoundError):
                if journal.header.fingerprint == fingerprint and not journal.final:
                    return journal
        return None

    def _header(self, track: TrackSettings, name: str, **purpose: str) -> Header:
        from mlflow.tracking.context.registry import resolve_tags

        tags = _experiment_tags()
        full_name = track.run_name or (f"{name} ({tags['dvc.exp']})" if tags else name)
        return Header(
            key=uuid4().hex,
            store=self.address,
            experiment=track.experiment,
            name=full_name,
            start_time=now(),
            # MLflow adds who started the run, from which script, and the address of the git remote.
            tags={**{tag: shown(value) for tag, value in resolve_tags().items()}, **tags},
            **purpose,  # type: ignore[arg-type]
        )

    @contextmanager
    def _recording(self, journal: Journal) -> Iterator[Run]:
        """Send the journal in the background while it is written; end the run as the block ends."""
        run = Run(journal)
        uploader = Uploader(self, journal)
        uploader.start()
        try:
            yield run
        except BaseException as error:
            failed = isinstance(error, Exception) and not isinstance(error, StoppedError)
            with suppress(OSError):  # a full disk must not hide its own report
                run.set_tags({"failure": (str(error) or type(error).__name__)[:5000]})
                # Only a training goes on later.
                final = journal.header.fingerprint is None or is_final(error)
                status = Status(status="FAILED" if failed else "KILLED", time=now(), final=final)
                journal.append(status)
            raise
        else:
            journal.append(Status(status="FINISHED", time=now(), final=True))
        finally:
            journal.close()
            fault = uploader.finish()
            if uploader.sent:
                run.name, run.run_id = uploader.sent.name, uploader.sent.run_id
            if fault:
                print(f"warning: {fault}; {journal.folder} keeps run {run.name!r}: `truefit sync` sends it", file=sys.stderr)

    def sync(self) -> Iterator[tuple[Journal, Sent | Exception]]:
        """Send what the journals hold; give each with its run in the store, or with what kept it from being sent."""
        for journal in pending(self._runs):
            try:
                yield journal, self.send(journal)
            except (TrackingError, OSError) as error:
                if journal.folder.exists():  # where it is gone, another process has sent it to the end
                    yield journal, error

    def send(self, journal: Journal) -> Sent:
        """Send what the store does not have yet, and return the run there; a run that has ended for good is removed.

        Raises TrackingError or OSError where the store does not take it; what it took is not sent again.
        """
        header = journal.header
        if header.store != self.address:
            raise TrackingError(f"is for the store {header.store or 'of this repository'}; see MLFLOW_TRACKING_URI")
        with journal.sending() as before, self.errors():
            client = self.connect()
            sent = before if before.run_id else self._find_or_create(client, header)
            last: Record | None = None
            try:
                for batch in _batches(journal.read(sent.offset)):
                    self._apply(client, journal, sent, [record for record, _ in batch])
                    last, offset = batch[-1]
                    sent = sent.model_copy(update={"offset": offset})
            finally:
                if sent != before:
                    journal.save_sent(sent)
            # The whole journal is read where nothing was new, and not while records come in.
            if journal.final if last is None else isinstance(last, Status) and last.final:
                journal.remove()
        return sent

    def _find_or_create(self, client: "MlflowClient", header: Header) -> Sent:
        """Return the run that the header speaks of, which an attempt whose answer was lost may have created."""
        experiment = self.experiment(header.experiment)
        if found := self._search(client, experiment, f"tags.`{KEY_TAG}` = '{header.key}'"):
            return Sent(run_id=found[0].info.run_id, name=header.name)
        if header.completes:
            for other in pending(self._runs):
                # Another process may have sent it to the end in this moment.
                with suppress(FileNotFoundError):
                    earlier = other.header.store == self.address and other.header.start_time <= header.start_time
                    if earlier and _trained(other) == header.completes:
                        self.send(other)
            where = f"tags.`{DIGEST_TAG}` = '{header.completes}' and attributes.status = 'FINISHED'"
            if found := self._search(client, experiment, where):
                # A later one with the same bits has an evaluation of its own.
                before = [run for run in found if run.info.start_time <= header.start_time] or found
                wanted = [header.tags.get(tag) for tag in _PURPOSE_TAGS]
                alike = (run for run in before if [run.data.tags.get(tag) for tag in _PURPOSE_TAGS] == wanted)
                chosen = next(alike, before[0])
                return Sent(run_id=chosen.info.run_id, name=chosen.info.run_name, joined=True)
        created = client.create_run(experiment, header.start_time, {**header.tags, KEY_TAG: header.key}, header.name)
        return Sent(run_id=created.info.run_id, name=header.name)

    def _search(self, client: "MlflowClient", experiment: str, where: str) -> "Sequence[MlflowRun]":
        """Return the runs of which `where` holds, the latest first."""
        found: Sequence[MlflowRun] = client.search_runs([experiment], where, order_by=["attributes.start_time DESC"])
        return found

    def _apply(self, client: "MlflowClient", journal: Journal, sent: Sent, records: "list[Record]") -> None:
        """Send one record, or several of metrics."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        run_id = str(sent.run_id)
        match records:
            case [Metrics(), *_]:
                metrics = [
                    Metric(key, value, record.time, record.step)
                    for record in records
                    if isinstance(record, Metrics)
                    for key, value in record.values.items()
                ]
                client.log_batch(run_id, metrics=metrics)
            case [Values(kind="params", values=values)]:
                for part in _parts(values):
                    client.log_batch(run_id, params=[Param(key, value) for key, value in part])
            case [Values(kind="tags", values=values)]:
                for part in _parts(values):
                    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in part])
            case [Values(kind="dataset", values=values)]:
                client.log_inputs(run_id, [DatasetInput(Dataset(**values), [InputTag("mlflow.data.context", "training")])])
            case [Artifact() as artifact]:
                client.log_artifact(run_id, str(journal.artifact(artifact)), str(Path(artifact.name).parent))
            case [Status(status="RUNNING")]:
                client.update_run(run_id, "RUNNING")
                if "failure" in client.get_run(run_id).data.tags:
                    client.delete_tag(run_id, "failure")
            case [Status() as status] if not sent.joined:
                client.set_terminated(run_id, status.status, status.time)
        self.calls += 1

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run, all or none."""
        from mlflow.entities import RunTag

        self.connect().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

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
                with FileLock(self._root / ".truefit/store.lock"):
                    database = self._root / "mlflow.db"
                    if self.address is None and not database.exists():
                        # A kill in the middle of the creation would leave a store that nothing opens any more.
                        with atomic_path(database) as temporary:
                            MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
                    client = MlflowClient(self.uri)
                    client.search_experiments(max_results=1)
            except ImportError as error:
                raise TrackingError(f"MLflow store {self.shown}: its driver is not installed: {error}") from None
            self._client = client
        return self._client

    def experiment(self, name: str) -> str:
        """Return the experiment's id, creating it with its artifacts beside the store where that is a local file."""
        if name in self._experiments:
            return self._experiments[name]
        here = (self._root / "mlartifacts").as_uri()
        with self.errors(), FileLock(self._root / ".truefit/experiment.lock"):
            client = self.connect()
            known = client.get_experiment_by_name(name)
            if known is None:
                # Left alone, a local store would take the current folder, which may be DVC's and soon be gone.
                tags = {VIEW_TAG: _view()}
                self._experiments[name] = client.create_experiment(name, here if self._is_local else None, tags)
                return self._experiments[name]
        fault = ""
        if known.lifecycle_stage == "deleted":
            fault = f"is deleted; `mlflow experiments restore --experiment-id {known.experiment_id}`"
        elif self.address is None and not known.artifact_location.startswith(here):
            fault = f"keeps its artifacts in {known.artifact_location}; move the repository back"
        if fault:
            raise TrackingError(f"MLflow store {self.shown}: {name!r} {fault}, or change track.experiment")
        self._experiments[name] = str(known.experiment_id)
        return self._experiments[name]

    @property
    def _is_local(self) -> bool:
        return self.uri.startswith(("sqlite:", "file:"))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn MLflow's own errors into one line that names the store, and tell those of a store that is away."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except SQLAlchemyError as error:  # which MLflow lets through where it opens a database
            raise TrackingError(shown(f"MLflow store {self.uri}: {str(error).splitlines()[0]}")) from error
        except MlflowException as error:
            status = error.get_http_status_code()  # type: ignore[no-untyped-call]
            away = not self._is_local and (status == 429 or status >= 500)
            kind = StoreAwayError if away else TrackingError
            raise kind(shown(f"MLflow store {self.uri}: {str(error).splitlines()[0]}")) from error


class Uploader(threading.Thread):
    """Sends a journal in the background while it is written, and once more at the end."""

    def __init__(self, store: Store, journal: Journal) -> None:
        super().__init__(name="uploader", daemon=True)
        self._store = store
        self._journal = journal
        self._closing = threading.Event()
        self._fault: str | None = None
        self.sent: Sent | None = None

    def run(self) -> None:
        """Send, wait, send again: soon while all goes well, later and later while it does not."""
        pause = 1.0
        while self._journal.folder.exists():
            last = self._closing.is_set()
            self._fault = f"MLflow store {self._store.shown}: no answer"
            try:
                self.sent = self._store.send(self._journal)
            except (TrackingError, OSError) as error:
                self._fault = shown(" ".join(str(error).split()))
                wait, pause = pause, min(2 * pause, LONGEST_PAUSE)
            else:
                self._fault, wait, pause = None, FLUSH_SECONDS, 1.0
            if last:
                break
            self._closing.wait(wait)
        if not self._journal.folder.exists():  # sent to the end, if not here then by another process
            self._fault = None

    def finish(self) -> str | None:
        """Wait for a last attempt, as long as the store answers; return what kept the journal from being sent, or None."""
        self._closing.set()
        while self.is_alive():
            before = self._store.calls
            self.join(PATIENCE)
            if self._store.calls == before:
                break
        return self._fault


def _trained(journal: Journal) -> str | None:
    """Return the digest of the model that a training ended with for good, None where it has not, or is none."""
    digest = None
    for record, _ in journal.read():
        if isinstance(record, Values) and record.kind == "tags":
            digest = record.values.get(DIGEST_TAG, digest)
    return digest if journal.header.fingerprint and journal.final else None


def _experiment_tags() -> dict[str, str]:
    """Return the tags that name the DVC experiment, the commit it began from, and its grid, where there is one.

    DVC numbers the experiments of a grid that was given a name: lr-1, lr-2 and so on.
    """
    name, baseline = os.environ.get("DVC_EXP_NAME"), os.environ.get("DVC_EXP_BASELINE_REV")
    if not name:
        return {}
    grid = re.fullmatch(r"(.+)-\d+", name)
    return {"dvc.exp": name} | ({"dvc.baseline": baseline} if baseline else {}) | ({"dvc.grid": grid[1]} if grid else {})


def _view() -> str:
    """Return the view of the table of runs, as MLflow keeps it in a tag of the experiment."""
    state = json.dumps({"selectedColumns": VIEW_COLUMNS})
    return json.dumps({"name": VIEW_NAME, "createdAt": now(), "updatedAt": now(), "state": state})


def _pack_model(
    loader: ModuleType, model: Sequence[Path], example: "pd.DataFrame", dtype: str
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files of an MLflow model, by their paths in the run, and what MLflow's list of such models says of it."""
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # tells what it is about to do
    columns = Schema([ColSpec(DataType.double, name) for name in example.columns])
    described = Model(artifact_path=MODEL_FOLDER)
    with TemporaryDirectory(prefix="truefit-model-") as temporary:
        code, data, packed = (Path(temporary, name) for name in (loader.__name__.partition(".")[0], "model", "packed"))
        for folder, paths in [(code, [Path(str(loader.__file__)).with_stem(name) for name in loader.MODULES]), (data, model)]:
            folder.mkdir()
            for path in paths:
                shutil.copy(path, folder)
        pyfunc.save_model(
            packed,
            loader_module=loader.__name__,
            data_path=str(data),
            code_paths=[str(code)],
            mlflow_model=described,
            signature=ModelSignature(columns, Schema([TensorSpec(np.dtype(dtype), (-1,))])),
            input_example=example,
            # Given, since MLflow would load the model in a process of its own to find them out; torch's without its build.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in loader.PACKAGES],
        )
        saved = [path for path in packed.rglob("*") if path.is_file()]
        files = {f"{MODEL_FOLDER}/{path.relative_to(packed)}": path.read_bytes() for path in saved}
    return files, described.get_tags_dict()


def shown(text: str) -> str:
    """Return the text without the user's name and password that an address in it may hold."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _batches(records: "Iterable[tuple[Record, int]]") -> "Iterator[list[tuple[Record, int]]]":
    """Join records of metrics as far as the store takes them at once; give each other record by itself."""
    batch: list[tuple[Record, int]] = []
    metrics = 0
    for record, offset in records:
        size = len(record.values) if isinstance(record, Metrics) else METRICS_A_BATCH
        if batch and metrics + size > METRICS_A_BATCH:
            yield batch
            batch, metrics = [], 0
        batch.append((record, offset))
        metrics += size
    if batch:
        yield batch


def _parts(values: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    items = list(values.items())
    return (items[start : start + VALUES_A_BATCH] for start in range(0, len(items), VALUES_A_BATCH))
