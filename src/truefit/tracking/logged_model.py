"""The MLflow model of a run in the store: an entity of its own there, which the Models page lists and the registry takes.

Its files are there alone, and not among the artifacts of the run as well: MLflow finds `runs:/ID/model` by name and run. The
sender does too, so sending a model again adds nothing.
"""

from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from truefit.tracking.names import MODEL

if TYPE_CHECKING:
    from mlflow import MlflowClient


def is_model_file(name: str) -> bool:
    """Say whether an artifact is a file of the MLflow model.

    >>> [is_model_file(name) for name in ("model/MLmodel", "state_dict/model.json")]
    [True, False]
    """
    return name.startswith(f"{MODEL}/")


def find_model(client: "MlflowClient", run_id: str) -> str | None:
    """Return the id of a run's model, or None, as on a server before MLflow 3, which has none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_run(run_id).info.experiment_id
    try:
        return _find(client, run_id, experiment)
    except MlflowException as error:
        if error.error_code != "ENDPOINT_NOT_FOUND":
            raise
        return None


def add_file(client: "MlflowClient", run_id: str, name: str, path: Path) -> None:
    """Store a file of a run's model; `name` is that of an artifact."""
    folder = PurePosixPath(name).relative_to(MODEL).parent
    client.log_model_artifact(_find_or_create(client, run_id), str(path), str(folder) if folder.parts else None)


def complete(client: "MlflowClient", run_id: str) -> None:
    """Say that all files of the model are there, and that it is what the run gave."""
    from mlflow.entities import LoggedModelOutput

    model_id, outputs = _find_or_create(client, run_id), client.get_run(run_id).outputs
    if outputs is None or all(output.model_id != model_id for output in outputs.model_outputs):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    client.finalize_logged_model(model_id, "READY")


def delete_run(client: "MlflowClient", run_id: str) -> None:
    """Delete a run, and its model, which the Models page would go on to list."""
    if model_id := find_model(client, run_id):
        client.delete_logged_model(model_id)
    client.delete_run(run_id)


@lru_cache(maxsize=1)  # a model has some thirty files
def _find_or_create(client: "MlflowClient", run_id: str) -> str:
    experiment = client.get_run(run_id).info.experiment_id
    return _find(client, run_id, experiment) or str(client.create_logged_model(experiment, MODEL, run_id).model_id)


def _find(client: "MlflowClient", run_id: str, experiment: str) -> str | None:
    found = client.search_logged_models([experiment], f"name = '{MODEL}' AND source_run_id = '{run_id}'", max_results=1)
    return str(found[0].model_id) if found else None
