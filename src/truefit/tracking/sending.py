"""Journals sent to the store, each record once, also where an attempt was cut off.

Sending again adds nothing: a run is found by its key, and the same metric of the same time and step counts once. So what the
store has lost is sent again from the beginning.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from truefit.core.errors import TrackingError
from truefit.tracking.connection import Connection
from truefit.tracking.finding import completed, is_there, may_complete, search
from truefit.tracking.grid import parent_tags
from truefit.tracking.journal import Journal, pending, setting_aside
from truefit.tracking.logged_model import add_file, complete, find_model, is_model_file
from truefit.tracking.names import (
    DATASET_TAG,
    FAILURE_TAG,
    KEY_TAG,
    SKIPPED_TAG,
)
from truefit.tracking.records import Artifact, Header, Metrics, Record, Sent, Status, Values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# About so many metrics are sent, and acknowledged, together: an attempt that is cut off loses no more of its work.
METRICS_A_BATCH = 1000
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"  # of MLflow: seconds for a connection, for taking a block of bytes, and for an answer
SLOWEST = 1_000_000  # bytes a second with which a server may pass on an artifact, before it answers …
LONGEST_ANSWER = 600  # … within so many seconds at most


class Sender:
    """Sends journals to a store; `answered` counts the requests with records that it has answered."""

    def __init__(self, connection: Connection, runs: Path) -> None:
        self.connection = connection
        self.answered = 0
        self.uploads = False  # while an artifact is under way, which may take long
        self._runs = runs

    def send(self, journal: Journal) -> Sent:
        """Send what the store does not have yet, and return the run there; a run that has ended for good is removed.

        Raises TrackingError or OSError where the store does not take it; what it took is not sent again.
        """
        header = journal.header
        if header.store != self.connection.address:
            raise TrackingError(f"is for the store {header.store or 'of this repository'}; see MLFLOW_TRACKING_URI")
        if header.completes and journal.sent().run_id is None:
            self._send_trainings(header)
        return self._send(journal)

    def _send_trainings(self, header: Header) -> None:
        """Send those trainings that the evaluation with this header may be of."""
        for journal in pending(self._runs):
            with suppress(FileNotFoundError), setting_aside(journal.path):  # it may be sent to the end in this moment
                if may_complete(header, journal):
                    self._send(journal)

    def _send(self, journal: Journal) -> Sent:
        with journal.sending() as sent, self.connection.errors():
            client = self.connection.connect()
            if sent.run_id is None or not is_there(client, sent.run_id):
                sent = self._find_or_create(client, journal.header)
            # The scores of an evaluation are those of the run's model too.
            model_id = find_model(client, str(sent.run_id)) if journal.header.completes else None
            for batch, number in _batches(journal.read(sent.number), model_id):
                skipped = self._deliver(client, journal, sent, batch, number)
                self.answered += 1
                over = isinstance(batch, Status) and batch.final
                sent = sent.model_copy(update={"number": number, "over": over, "skipped": skipped})
                journal.acknowledge(sent)
            if sent.over:
                journal.remove()
        return sent

    def _find_or_create(self, client: "MlflowClient", header: Header) -> Sent:
        # An attempt whose answer was lost may have created it.
        experiment = self.connection.experiment(header.experiment)
        if found := search(client, experiment, KEY_TAG, header.key):
            return Sent(run_id=found[0].info.run_id, name=header.name)
        if run := completed(client, experiment, header):
            return Sent(run_id=run.info.run_id, name=run.info.run_name, is_anothers_run=True)
        parent = parent_tags(client, experiment, header, self.connection.root / ".truefit/grid.lock")
        tags = {**header.tags, **parent, KEY_TAG: header.key}
        created = client.create_run(experiment, header.start_time, tags, header.name)
        return Sent(run_id=created.info.run_id, name=header.name)

    def _deliver(
        self, client: "MlflowClient", journal: Journal, sent: Sent, batch: "list[Metric] | Record", number: int
    ) -> list[str]:
        """Send a batch; return the names of all that the store refuses so far, which is left out."""
        try:
            self._log(client, journal, sent, batch, number)
        except _errors() as error:
            # A run that is in the bin refuses everything, and takes it when it is restored.
            if not _is_refusal(error) or isinstance(batch, Status) or not is_there(client, str(sent.run_id)):
                raise
        else:
            return sent.skipped
        skipped = list(sent.skipped)
        for single in _singles(batch):
            try:
                self._log(client, journal, sent, single, number)
            except _errors() as error:
                if not _is_refusal(error):
                    raise
                skipped.append(_name(single))
        if skipped != sent.skipped:
            client.set_tag(str(sent.run_id), SKIPPED_TAG, ", ".join(skipped)[:5000])
        return skipped

    def _log(self, client: "MlflowClient", journal: Journal, sent: Sent, batch: "list[Metric] | Record", number: int) -> None:
        """Send a batch; MLflow's client divides what is more than the store takes at once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        run_id = str(sent.run_id)
        match batch:
            case list():
                client.log_batch(run_id, metrics=batch)
            case Values(kind="dataset", values=values):
                client.log_inputs(run_id, [DatasetInput(Dataset(**values), [InputTag(DATASET_TAG, "training")])])
            case Values(kind="params", values=values):
                client.log_batch(run_id, params=[Param(key, value) for key, value in values.items()])
            case Values(kind="model"):
                complete(client, run_id)
            case Values(values=values):
                client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])
            case Artifact(name=name):
                with journal.artifact(batch, number) as file, self._uploading(file.stat().st_size), _artifact_errors(name):
                    if is_model_file(name):
                        add_file(client, run_id, name, file)
                    else:
                        client.log_artifact(run_id, str(file), str(Path(name).parent))
            case Status(status="RUNNING"):
                client.update_run(run_id, "RUNNING")
                if FAILURE_TAG in client.get_run(run_id).data.tags:
                    client.delete_tag(run_id, FAILURE_TAG)
            case Status(status=status, time=time) if not sent.is_anothers_run:
                client.set_terminated(run_id, status, time)

    @contextmanager
    def _uploading(self, size: int) -> Iterator[None]:
        """Allow for the size of an artifact: a server that passes it on to another place answers when that is done."""
        former = os.environ[TIMEOUT]
        os.environ[TIMEOUT] = str(int(former) + min(size // SLOWEST, LONGEST_ANSWER))
        self.uploads = True
        try:
            yield
        finally:
            self.uploads = False
            os.environ[TIMEOUT] = former


def _batches(records: Iterable[tuple[Record, int]], model_id: str | None) -> "Iterator[tuple[list[Metric] | Record, int]]":
    """Put metrics together that follow each other, as those of a model too where there is one."""
    from mlflow.entities import Metric

    metrics: list[Metric] = []
    end = 0
    for record, number in records:
        if metrics and (not isinstance(record, Metrics) or len(metrics) >= METRICS_A_BATCH):
            yield metrics, end
            metrics = []
        if isinstance(record, Metrics):
            metrics += [Metric(key, value, record.time, record.step, model_id) for key, value in record.values.items()]
            end = number
        else:
            yield record, number
    if metrics:
        yield metrics, end


def _errors() -> tuple[type[Exception], ...]:
    """Return the errors by which a store refuses something: those of MLflow, and of HTTP for an artifact."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    return MlflowException, HTTPError


@contextmanager
def _artifact_errors(name: str) -> Iterator[None]:
    """Make a TrackingError of what the library of an artifact store raises, such as boto3, or of its not being there.

    MLflow lets each through as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (TrackingError, OSError, *_errors())):
            raise
        raise TrackingError(f"artifact {name}: {type(error).__name__}: {error}") from error


def _is_refusal(error: Exception) -> bool:
    """Say whether the store would refuse the same again: what is no valid value, too large, or newer than the server."""
    answer = getattr(error, "response", None)
    if answer is not None:
        return answer.status_code in (400, 413, 422)
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND")


def _singles(batch: "list[Metric] | Record") -> "list[list[Metric] | Record]":
    match batch:
        case list():
            return [[metric] for metric in batch]
        case Values(kind="params" | "tags", values=values):
            return [batch.model_copy(update={"values": {key: value}}) for key, value in values.items()]
    return [batch]


def _name(single: "list[Metric] | Record") -> str:
    match single:
        case list():
            return f"metric {single[0].key}"
        case Values(kind="params" | "tags" as kind, values=values):
            return f"{kind[:-1]} {next(iter(values))}"
        case Artifact(name=name):
            return name
    return single.kind
