"""Journals sent to the store: each record once, also where an attempt was cut off.

Reads journals, and removes those that were sent to the end. Guarantees that sending again adds nothing: a run is found by its
key, and the same metric of the same time and step counts once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from truefit.core.errors import TrackingError
from truefit.tracking.connection import Connection
from truefit.tracking.journal import Artifact, Header, Journal, Metrics, Record, Sent, Status, Values, pending
from truefit.tracking.names import DATASET_TAG, DIGEST_TAG, EXPERIMENT_TAG, FAILURE_TAG, KEY_TAG, RERUN_KEY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

# What the store takes at once.
METRICS_A_BATCH, VALUES_A_BATCH = 1000, 100
# By these a run is told from others that ended with the same bits.
_PURPOSE_TAGS = (EXPERIMENT_TAG, RERUN_KEY_TAG)


def send(store: Connection, runs: Path, journal: Journal) -> Sent:
    """Send what the store does not have yet, and return the run there; a journal below `runs` that has ended for good goes.

    Raises TrackingError or OSError where the store does not take it; what it took is not sent again.
    """
    header = journal.header
    if header.store != store.address:
        raise TrackingError(f"is for the store {header.store or 'of this repository'}; see MLFLOW_TRACKING_URI")
    with journal.sending() as before, store.errors():
        client = store.connect()
        sent = before if before.run_id else _find_or_create(store, runs, client, header)
        last: Record | None = None
        try:
            for batch in _batches(journal.read(sent.offset)):
                _apply(client, journal, sent, [record for record, _ in batch])
                store.calls += 1
                last, offset = batch[-1]
                sent = sent.model_copy(update={"offset": offset})
        finally:
            if sent != before:
                journal.save_sent(sent)
        # The whole journal is read where nothing was new, and not while records come in.
        if journal.final if last is None else isinstance(last, Status) and last.final:
            journal.remove()
    return sent


def _find_or_create(store: Connection, runs: Path, client: "MlflowClient", header: Header) -> Sent:
    """Return the run that the header speaks of, which an attempt whose answer was lost may have created."""
    experiment = store.experiment(header.experiment)
    if found := _search(client, experiment, f"tags.`{KEY_TAG}` = '{header.key}'"):
        return Sent(run_id=found[0].info.run_id, name=header.name)
    if header.completes:
        for other in pending(runs):
            # Another process may have sent it to the end in this moment.
            with suppress(FileNotFoundError):
                earlier = other.header.store == store.address and other.header.start_time <= header.start_time
                if earlier and _trained(other) == header.completes:
                    send(store, runs, other)
        where = f"tags.`{DIGEST_TAG}` = '{header.completes}' and attributes.status = 'FINISHED'"
        if found := _search(client, experiment, where):
            # A later one with the same bits has an evaluation of its own.
            before = [run for run in found if run.info.start_time <= header.start_time] or found
            wanted = [header.tags.get(tag) for tag in _PURPOSE_TAGS]
            alike = (run for run in before if [run.data.tags.get(tag) for tag in _PURPOSE_TAGS] == wanted)
            chosen = next(alike, before[0])
            return Sent(run_id=chosen.info.run_id, name=chosen.info.run_name, joined=True)
    created = client.create_run(experiment, header.start_time, {**header.tags, KEY_TAG: header.key}, header.name)
    return Sent(run_id=created.info.run_id, name=header.name)


def _search(client: "MlflowClient", experiment: str, where: str) -> "Sequence[MlflowRun]":
    """Return the runs of which `where` holds, the latest first."""
    found: Sequence[MlflowRun] = client.search_runs([experiment], where, order_by=["attributes.start_time DESC"])
    return found


def _apply(client: "MlflowClient", journal: Journal, sent: Sent, records: "list[Record]") -> None:
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
            client.log_inputs(run_id, [DatasetInput(Dataset(**values), [InputTag(DATASET_TAG, "training")])])
        case [Artifact() as artifact]:
            client.log_artifact(run_id, str(journal.artifact(artifact)), str(Path(artifact.name).parent))
        case [Status(status="RUNNING")]:
            client.update_run(run_id, "RUNNING")
            if FAILURE_TAG in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, FAILURE_TAG)
        case [Status() as status] if not sent.joined:
            client.set_terminated(run_id, status.status, status.time)


def _trained(journal: Journal) -> str | None:
    """Return the digest of the model that a training ended with for good, None where it has not, or is none."""
    digest = None
    for record, _ in journal.read():
        if isinstance(record, Values) and record.kind == "tags":
            digest = record.values.get(DIGEST_TAG, digest)
    return digest if journal.header.fingerprint and journal.final else None


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
