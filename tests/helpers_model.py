"""The MLflow model of a run, from a store that need not be the one of this process."""

from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository


def model_of(client: MlflowClient, run: Run) -> LoggedModel:
    """Return the one model that a run gave."""
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    return client.get_logged_model(output.model_id)


def download_model(client: MlflowClient, run: Run, folder: Path) -> Path:
    """Download the model of a run to a folder, and return this; runs:/ID/model is of the process's own store."""
    location = model_of(client, run).artifact_location
    artifacts: Any = get_artifact_repository(location, tracking_uri=client.tracking_uri)
    artifacts.download_artifacts("", str(folder))
    return folder
