"""The run in the store that a journal is of, or that an evaluation adds to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from truefit.core.errors import TrackingError
from truefit.tracking.journal import Journal
from truefit.tracking.names import DIGEST_TAG, EXPERIMENT_TAG, KEY_TAG, RERUN_KEY_TAG, USER_TAG
from truefit.tracking.records import Header, Status, Values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

CANDIDATES = 100  # runs of the same model among which an evaluation looks for its own


def is_there(client: "MlflowClient", run_id: str) -> bool:
    """Say whether the store has the run; raises TrackingError where it is in the bin."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    if run.info.lifecycle_stage == "deleted":
        fault = f"MLflow run {run_id} is deleted; `mlflow runs restore --run-id {run_id}` brings it back"
        raise TrackingError(f"{fault}, `truefit sync --forget {run_id}` gives up what it does not have")
    return True


def search(
    client: "MlflowClient", experiment: str, tag: str, value: str | None, more: str = "", most: int = 1
) -> "Sequence[MlflowRun]":
    """Return the runs with a tag of this value, of which `more` holds too, the latest first."""
    where = f"tags.`{tag}` = '{value}'{more}"
    found: Sequence[MlflowRun] = client.search_runs(
        [experiment], where, max_results=most, order_by=["attributes.start_time DESC"]
    )
    return found


def may_complete(header: Header, journal: Journal) -> bool:
    """Say whether a journal is of the training that an evaluation is of; or, if that is unknown, of an earlier one like it."""
    training = journal.header
    if header.training or training.store != header.store or not training.fingerprint:
        return header.training == training.key
    records = [record for record, _ in journal.read() if isinstance(record, Values | Status)]
    model = any(isinstance(record, Values) and record.values.get(DIGEST_TAG) == header.completes for record in records)
    ended = any(isinstance(record, Status) and record.status == "FINISHED" for record in records)
    return model and ended and training.start_time <= header.start_time


def completed(client: "MlflowClient", experiment: str, header: Header) -> "MlflowRun | None":
    """Return the run that an evaluation completes, or None: that of its training or, if this is unknown, one with its model.

    That one is of the same user, and of the same rerun or of none: a colleague's run, or what a verdict is on, gets no other
    scores. Of several it is the latest before the evaluation, since a later one has an evaluation of its own; if possible of
    the same experiment.
    """
    if header.training:
        return _training(client, experiment, header.training)
    if not header.completes:
        return None
    finished = " and attributes.status = 'FINISHED'"
    found = search(client, experiment, DIGEST_TAG, header.completes, finished, CANDIDATES)
    own = [run for run in found if _agree(run, header, USER_TAG, RERUN_KEY_TAG)]
    before = [run for run in own if run.info.start_time <= header.start_time] or own
    same = (run for run in before if _agree(run, header, EXPERIMENT_TAG))
    return next(same, before[0] if before else None)


def _training(client: "MlflowClient", experiment: str, key: str) -> "MlflowRun | None":
    """Return the run of a training, also where its experiment was renamed; raises TrackingError for one in the bin."""
    from mlflow.entities import ViewType

    places = dict.fromkeys([experiment, *(other.experiment_id for other in client.search_experiments())])
    found = client.search_runs([*places], f"tags.`{KEY_TAG}` = '{key}'", ViewType.ALL, max_results=1)
    return found[0] if found and is_there(client, found[0].info.run_id) else None


def _agree(run: "MlflowRun", header: Header, *tags: str) -> bool:
    return all(run.data.tags.get(tag) == header.tags.get(tag) for tag in tags)
