"""`make ui`: the store and its artifacts over HTTP, on 127.0.0.1 and nowhere else."""

import json
import urllib.request
from pathlib import Path

import pytest
from mlflow.entities import Run
from workspace import Workspace

from truefit.tracking.run import TrackSettings
from truefit.tracking.store import Store

# The server of the tests in a browser.
pytestmark = pytest.mark.xdist_group("browser")

DIGEST = "d" * 64  # of a model that no training has, so that its evaluation is a run of its own


def test_ui_shows_the_runs_of_the_local_store(address: str, run: Run) -> None:
    query = json.dumps({"experiment_ids": [run.info.experiment_id]}).encode()
    request = urllib.request.Request(f"{address}/ajax-api/2.0/mlflow/runs/search", query, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)["runs"][-1]
    assert found["info"]["run_name"] == run.info.run_name
    assert {metric["key"]: metric["value"] for metric in found["data"]["metrics"]} == run.data.metrics


def test_ui_gives_the_artifacts(address: str, run: Run, workspace: Workspace) -> None:
    picture = workspace.path / "mlartifacts" / run.info.run_id / "artifacts/figures/loss.png"
    with urllib.request.urlopen(f"{address}/get-artifact?path=figures/loss.png&run_uuid={run.info.run_id}") as answer:
        assert answer.read() == picture.read_bytes()


def test_ui_listens_on_this_machine_only(address: str) -> None:
    port = int(address.rsplit(":", 1)[1])
    listening = [
        fields[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for fields in map(str.split, Path(table).read_text().splitlines()[1:])
        if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]  # 127.0.0.1, in the byte order of /proc


def test_runs_reach_a_server_named_by_the_environment(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with Store().evaluation_run(TrackSettings(experiment="remote"), DIGEST) as sent:
        sent.log_artifacts({"record/params.yaml": b"content"})
    with urllib.request.urlopen(f"{address}/get-artifact?path=record/params.yaml&run_uuid={sent.run_id}") as answer:
        assert answer.read() == b"content"
    assert not (tmp_path / "mlflow.db").exists()
