"""A store in a folder of its own, and an experiment for each test."""

from pathlib import Path

import pytest
from workspace import put_store

from truefit.tracking.run import TrackSettings


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store."""
    root = tmp_path_factory.mktemp("root")
    put_store(root / "mlflow.db")
    return root


@pytest.fixture
def environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(root))


@pytest.fixture
def track(request: pytest.FixtureRequest) -> TrackSettings:
    """An experiment for each test."""
    return TrackSettings(experiment=request.node.name)
