"""Journals sent to the store, each record once, also where an attempt was cut off.

Sending again adds nothing: a run is found by its key, and the same metric of the same time and step counts once.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from truefit.core.errors import TrackingError
from truefit.core.redaction import redacted
from truefit.tracking.connection import Connection
from truefit.tracking.journal import Artifact, Header, Journal, Metrics, Record, Sent, Status, Values, pending
from truefit.tracking.names import DATASET_TAG, DIGEST_TAG, EXPERIMENT_TAG, FAILURE_TAG, KEY_TAG, RERUN_KEY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities import Run as MlflowRun

# About so many metrics are sent, and acknowledged, together: an attempt that is cut off loses no more of its work.
METRICS_A_BATCH = 1000
FLUSH_SECONDS = 5.0  # that records may wait, to be sent together with those that follow
LONGEST_PAUSE = 60.0  # a store that fails is tried again after 1, 2, 4 … seconds, and at the end of the stage
PATIENCE = 60.0  # seconds without an answer, at the end of the stage, after which it is given up


class Sender:
    """Sends journals to a store; `answered` counts the requests with records that it has answered."""

    def __init__(self, connection: Connection, runs: Path) -> None:
        self.connection = connection
        self.answered = 0
        self._runs = runs

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
        if not self.connection.holds(header.store):
            raise TrackingError(f"is for the store {header.store or 'of this repository'}; see MLFLOW_TRACKING_URI")
        if header.completes and journal.sent().run_id is None:
            self._send_trainings(header.completes, header.start_time)
        return self._send(journal)

    def _send_trainings(self, digest: str, latest: int) -> None:
        """Send those trainings, begun up to the time `latest`, that ended with a model of the digest."""
        for journal in pending(self._runs):
            with suppress(FileNotFoundError):  # another process may have sent it to the end in this moment
                header = journal.header
                earlier = self.connection.holds(header.store) and header.start_time <= latest
                values = (record.values for record, _ in journal.read() if isinstance(record, Values))
                if earlier and header.fingerprint and journal.final and any(v.get(DIGEST_TAG) == digest for v in values):
                    self._send(journal)

    def _send(self, journal: Journal) -> Sent:
        over = False
        with journal.sending() as before, self.connection.errors():
            client = self.connection.connect()
            sent = before if before.run_id else self._find_or_create(client, journal.header)
            try:
                for batch, offset in _batches(journal.read(sent.offset)):
                    _log(client, journal, sent, batch)
                    self.answered += 1
                    sent = sent.model_copy(update={"offset": offset})
                    over = isinstance(batch, Status) and batch.final
            finally:
                if over:
                    journal.remove()
                elif sent != before:
                    journal.save_sent(sent)
        return sent

    def _find_or_create(self, client: "MlflowClient", header: Header) -> Sent:
        # An attempt whose answer was lost may have created it.
        experiment = self.connection.experiment(header.experiment)
        if found := _search(client, experiment, f"tags.`{KEY_TAG}` = '{header.key}'"):
            return Sent(run_id=found[0].info.run_id, name=header.name)
        where = f"tags.`{DIGEST_TAG}` = '{header.completes}' and attributes.status = 'FINISHED'"
        if header.completes and (found := _search(client, experiment, where)):
            info = _completed(found, header).info
            return Sent(run_id=info.run_id, name=info.run_name, is_anothers_run=True)
        created = client.create_run(experiment, header.start_time, {**header.tags, KEY_TAG: header.key}, header.name)
        return Sent(run_id=created.info.run_id, name=header.name)


class Uploader(threading.Thread):
    """Sends a journal in the background while it is written, and once more at the end; `sent` is how far it has come."""

    def __init__(self, sender: Sender, journal: Journal) -> None:
        super().__init__(name="uploader", daemon=True)
        self._sender = sender
        self._journal = journal
        self._closing = threading.Event()
        self._fault: str | None = None
        self.sent: Sent | None = None

    def run(self) -> None:
        """Send, wait, send again: soon while all goes well, later and later while it does not."""
        pause = 1.0
        while self._journal.folder.exists():
            last = self._closing.is_set()
            self._fault = f"MLflow store {self._sender.connection.redacted_uri}: no answer"
            try:
                self.sent = self._sender.send(self._journal)
            except (TrackingError, OSError) as error:
                self._fault = redacted(" ".join(str(error).split()))
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
            before = self._sender.answered
            self.join(PATIENCE)
            if self._sender.answered == before:
                break
        return self._fault


def _search(client: "MlflowClient", experiment: str, where: str) -> "Sequence[MlflowRun]":
    found: Sequence[MlflowRun] = client.search_runs([experiment], where, order_by=["attributes.start_time DESC"])
    return found


def _completed(found: "Sequence[MlflowRun]", header: Header) -> "MlflowRun":
    """Return which of several runs that ended with the same bits an evaluation completes.

    It is the latest before it, since a later one has an evaluation of its own; if possible of the same experiment or rerun.
    """
    before = [run for run in found if run.info.start_time <= header.start_time] or found
    tags = EXPERIMENT_TAG, RERUN_KEY_TAG
    same = (run for run in before if all(run.data.tags.get(tag) == header.tags.get(tag) for tag in tags))
    return next(same, before[0])


def _batches(records: Iterable[tuple[Record, int]]) -> "Iterator[tuple[list[Metric] | Record, int]]":
    """Put metrics together that follow each other."""
    from mlflow.entities import Metric

    metrics: list[Metric] = []
    end = 0
    for record, offset in records:
        if metrics and (not isinstance(record, Metrics) or len(metrics) >= METRICS_A_BATCH):
            yield metrics, end
            metrics = []
        if isinstance(record, Metrics):
            metrics += [Metric(key, value, record.time, record.step) for key, value in record.values.items()]
            end = offset
        else:
            yield record, offset
    if metrics:
        yield metrics, end


def _log(client: "MlflowClient", journal: Journal, sent: Sent, batch: "list[Metric] | Record") -> None:
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
        case Values(values=values):
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])
        case Artifact(name=name):
            client.log_artifact(run_id, str(journal.artifact(batch)), str(Path(name).parent))
        case Status(status="RUNNING"):
            client.update_run(run_id, "RUNNING")
            if FAILURE_TAG in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, FAILURE_TAG)
        case Status(status=status, time=time) if not sent.is_anothers_run:
            client.set_terminated(run_id, status, time)
