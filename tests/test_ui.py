"""`make ui`: the store and its artifacts over HTTP, on 127.0.0.1 and nowhere else."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_ui import served
from workspace import Workspace

from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.store import Store

DIGEST = "d" * 64  # of a model that no training has, so that its evaluation is a run of its own


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ui")


@pytest.fixture(scope="module")
def run(root: Path) -> Run:
    """A run in the local store of the workspace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with Store().evaluation_run(TrackSettings(run_name="a run to look at"), DIGEST) as run:
            run.log_metrics({"train_loss": 0.5}, 1)
            run.log_artifacts({"figures/loss.png": b"a picture"})
    return run


@pytest.fixture(scope="module")
def address(root: Path, run: Run) -> Iterator[str]:
    """The address of a `make ui` on a free port, stopped at the end."""
    with served(Workspace(root)) as address:
        yield address


def test_ui_shows_the_runs_of_the_local_store(address: str, run: Run) -> None:
    query = json.dumps({"experiment_ids": ["1"]}).encode()
    request = urllib.request.Request(f"{address}/ajax-api/2.0/mlflow/runs/search", query, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        (found,) = json.load(answer)["runs"]
    assert found["info"]["run_name"] == "a run to look at"
    assert found["data"]["metrics"][0]["value"] == 0.5


def test_ui_gives_the_artifacts(address: str, run: Run) -> None:
    with urllib.request.urlopen(f"{address}/get-artifact?path=figures/loss.png&run_uuid={run.run_id}") as answer:
        assert answer.read() == b"a picture"


def test_ui_listens_on_this_machine_only(address: str) -> None:
    port = int(address.rsplit(":", 1)[1])
    listening = [
        fields[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for fields in map(str.split, Path(table).read_text().splitlines()[1:])
        if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]  # 127.0.0.1, in the byte order of /proc


def test_runs_reach_a_server_named_by_the_environment(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with Store().evaluation_run(TrackSettings(experiment="remote"), DIGEST) as sent:
        sent.log_artifacts({"record/params.yaml": b"content"})
    with urllib.request.urlopen(f"{address}/get-artifact?path=record/params.yaml&run_uuid={sent.run_id}") as answer:
        assert answer.read() == b"content"
    assert not (tmp_path / "mlflow.db").exists()
