"""A real tracking server that goes away and comes back: nothing is lost, nothing comes twice, and `truefit sync` sends it."""

import http.client
import http.server
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier

import pandas as pd
import pytest
from helpers_model import download_model
from helpers_rerun import rerun
from helpers_server import Server, complaints, wait_for_epochs
from helpers_stages import Stages, Started
from helpers_torture import SEED, TORTURE
from helpers_tracking import complete
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from workspace import Workspace

from truefit.tracking import sending, uploading
from truefit.tracking.connection import Connection
from truefit.tracking.run import TrackSettings
from truefit.tracking.store import Store

EPOCHS = 24

pytestmark = pytest.mark.xdist_group("server")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, server: Server, stages: Stages) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("clone"), store=False)
    workspace.environment |= {"MLFLOW_TRACKING_URI": server.uri, "PYTHONPATH": str(workspace.path / "src")}
    workspace.set_params(generate__rows=5_000, train__engine="numpy", train__batch_size=1, train__epochs=EPOCHS)
    for stage, place in (("generate", "data/synthetic.csv"), ("prepare", "data/prepared")):
        assert stages.run(workspace.path, stage, place).status == 0
    return workspace


def start(workspace: Workspace, stages: Stages, experiment: str) -> Started:
    workspace.set_params(track__experiment=experiment)
    uri = workspace.environment["MLFLOW_TRACKING_URI"]
    return stages.start(workspace.path, "train", "data/prepared", "results", MLFLOW_TRACKING_URI=uri)


def sync(workspace: Workspace, stages: Stages, status: int = 0, uri: str | None = None) -> str:
    """Run `truefit sync`, for the workspace's server or another store, check its status and return what it says on stderr."""
    uri = uri or workspace.environment["MLFLOW_TRACKING_URI"]
    done = stages.run(workspace.path, "truefit", "sync", MLFLOW_TRACKING_URI=uri)
    assert done.status == status, done.line
    return done.line


def waiting(workspace: Workspace) -> int:
    return len(list((workspace.path / ".truefit/runs").iterdir()))


def check_whole(workspace: Workspace, server: Server, experiment: str) -> Run:
    """Check that the one run of the experiment has every epoch of history.csv once, and all that a run holds."""
    client = MlflowClient(server.uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    history = pd.read_csv(workspace.path / "results/history.csv")
    for name in ("train_loss", "validation_loss", "learning_rate"):
        metrics = sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))
        assert metrics == list(zip(history["epoch"], history[name], strict=True)), name
    for name in ("epoch_seconds", "train_rows_per_second"):
        steps = sorted(metric.step for metric in client.get_metric_history(run.info.run_id, name))
        assert steps == list(range(1, EPOCHS + 1)), name
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == str(EPOCHS)
    assert run.inputs is not None
    assert len(run.inputs.dataset_inputs) == 1
    assert run.data.tags["mlflow.source.name"] == "src/train.py"
    model = Path(client.download_artifacts(run.info.run_id, "state_dict/final.pt"))
    assert model.read_bytes() == (workspace.path / "results/model.pt").read_bytes()
    (logged,) = client.search_logged_models([found.experiment_id])
    assert (logged.source_run_id, logged.status) == (run.info.run_id, "READY")
    with TemporaryDirectory() as folder:
        packed = download_model(client, run, Path(folder))
        assert (packed / "data/model/model.pt").read_bytes() == model.read_bytes()
        assert (packed / "MLmodel").exists()
    assert {item.path for item in client.list_artifacts(run.info.run_id, "record")} >= {"record/params.yaml"}
    return run


def check_warned(process: Started) -> None:
    """Check that the stage ended well, and said in one line what is to be done."""
    _, printed = process.communicate()
    assert process.returncode == 0, printed
    (complaint,) = complaints(printed)
    assert complaint.startswith("warning: MLflow store http://127.0.0.1:"), complaint
    assert complaint.endswith("`truefit sync` sends it")


def test_server_away_from_the_start_gets_the_run_with_its_own_start_time_and_no_other_store_does(
    workspace: Workspace, server: Server, stages: Stages
) -> None:
    server.kill()
    began = time.time() * 1000
    process = start(workspace, stages, "start")
    wait_for_epochs(workspace, process, 1)
    running = time.time() * 1000
    check_warned(process)
    assert waiting(workspace) == 1
    assert "error: 1 runs could not be sent; they are kept" in sync(workspace, stages, status=2)

    complaint = sync(workspace, stages, status=2, uri=f"sqlite:///{workspace.path / 'other.db'}")
    assert f"is for the store {server.uri}; see MLFLOW_TRACKING_URI" in complaint
    assert waiting(workspace) == 1

    # Its evaluation waits as well, and is to join it.
    arguments = ("data/prepared", "results", "data/synthetic.csv")
    evaluated = stages.run(workspace.path, "evaluate", *arguments, MLFLOW_TRACKING_URI=server.uri)
    assert evaluated.status == 0
    assert "`truefit sync` sends it" in evaluated.line
    assert waiting(workspace) == 2

    server.start()
    sync(workspace, stages)
    assert waiting(workspace) == 0
    run = check_whole(workspace, server, "start")
    assert began <= run.info.start_time <= running
    assert run.data.metrics["test_mse"] == workspace.json("results/metrics.json")["test"]["mse"]
    sync(workspace, stages)
    assert stages.printed == ""
    check_whole(workspace, server, "start")


@pytest.mark.parametrize("epochs", [EPOCHS // 3, EPOCHS - 3] if TORTURE else [EPOCHS // 3])
def test_server_killed_in_the_middle_gets_the_rest_by_sync(
    workspace: Workspace, server: Server, stages: Stages, epochs: int
) -> None:
    experiment = f"killed after {epochs}"
    server.start()
    process = start(workspace, stages, experiment)
    wait_for_epochs(workspace, process, epochs)
    server.kill()
    check_warned(process)
    server.start()
    if TORTURE:  # two at once, which test_journal.py has as well
        twice = [subprocess.Popen(["truefit", "sync"], cwd=workspace.path, env=workspace.environment) for _ in range(2)]
        assert [one.wait() for one in twice] == [0, 0]
    else:
        sync(workspace, stages)
    assert waiting(workspace) == 0
    check_whole(workspace, server, experiment)


@pytest.mark.parametrize("number", range(3 if TORTURE else 1))
def test_server_that_comes_and_goes_gets_everything(workspace: Workspace, server: Server, stages: Stages, number: int) -> None:
    generator = random.Random(f"{SEED} {number}")
    print(f"seed {SEED}")
    experiment = f"flapping {number}"
    process = start(workspace, stages, experiment)
    while process.poll() is None:
        server.kill()
        time.sleep(generator.uniform(0, 1.5))
        server.start()
        time.sleep(generator.uniform(0, 1.5))
    assert (process.communicate()[0] != "", process.returncode) == (True, 0)
    server.start()
    sync(workspace, stages)
    assert waiting(workspace) == 0
    check_whole(workspace, server, experiment)


def test_sync_beside_a_training_neither_doubles_nor_loses(workspace: Workspace, server: Server, stages: Stages) -> None:
    server.start()
    process = start(workspace, stages, "beside")
    wait_for_epochs(workspace, process, 1)
    while process.poll() is None:
        sync(workspace, stages)
    assert (complaints(process.communicate()[1]), process.returncode) == ([], 0)
    assert waiting(workspace) == 0
    check_whole(workspace, server, "beside")


class Proxy(http.server.BaseHTTPRequestHandler):
    """Hands requests on to a server, and its answers back, those to an upload later."""

    to: str
    seconds: float  # that an upload takes longer

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.to, timeout=60)
        with closing(connection), suppress(OSError):
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            time.sleep(self.seconds if self.command == "PUT" else 0)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _hand_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.mark.parametrize(("rate", "takes"), [(100_000, True), (10_000_000, False)])
def test_upload_is_waited_for_as_long_as_its_size_allows(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rate: int,
    takes: bool,
) -> None:
    """Fault 12."""
    server.start()
    monkeypatch.setattr(Proxy, "to", server.uri.removeprefix("http://"), raising=False)
    monkeypatch.setattr(Proxy, "seconds", 5, raising=False)
    monkeypatch.setattr(uploading, "PATIENCE", 1)
    monkeypatch.setattr(sending, "SLOWEST", rate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
        run = complete(TrackSettings(experiment="slow"), f"slow {takes}", artifacts={"record/a": bytes(1_000_000)})
        proxy.shutdown()
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("slow")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{run.name}'")
    complaint = capsys.readouterr().err
    assert (found.info.status, "`truefit sync` sends it" in complaint) == (("FINISHED", False) if takes else ("RUNNING", True))


@pytest.mark.skipif(not TORTURE, reason="a minute long: `make torture`")
def test_rerun_of_a_run_on_a_server_is_identical(workspace: Workspace, server: Server) -> None:
    server.start()
    workspace.set_params(track__experiment="rerun", train__epochs=5)
    workspace.run("dvc", "repro")
    report = rerun(workspace)
    assert (report["verdict"], report["inputs"]) == ("identical", {})
    again = MlflowClient(server.uri).get_run(report["again"])
    assert (again.data.tags["rerun.verdict"], again.data.tags["rerun.of"]) == ("identical", report["recorded"])


def test_clones_that_create_an_experiment_at_once_get_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 13: of 8 trainings on a fresh server, 2 were refused."""
    server.start()
    clones = []
    for number in range(8):
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / str(number)))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        clones.append(Connection())
        clones[-1].connect()
    none_found, look_up = Barrier(len(clones)), MlflowClient.get_experiment_by_name

    def look_up_together(client: MlflowClient, name: str) -> Experiment | None:
        found: Experiment | None = look_up(client, name)
        if found is None:
            none_found.wait(timeout=60)
        return found

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", look_up_together)
    with ThreadPoolExecutor(len(clones)) as pool:
        assert len(set(pool.map(lambda clone: clone.experiment("of all clones"), clones))) == 1


def test_the_password_in_a_servers_address_is_shown_and_recorded_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fault 15: MLflow printed it where a run ended, and a failure's tag had it."""
    server.start()
    uri = server.uri.replace("//", "//me:s3cret@") + "/"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    track = TrackSettings(experiment="with a password")
    with pytest.raises(ValueError, match="invalid"), Store().evaluation_run(track, "d" * 64):
        raise ValueError(f"invalid: {uri}")
    with Store().evaluation_run(track, "d" * 64):
        written = b"".join(path.read_bytes() for path in (tmp_path / ".truefit/runs").iterdir() if path.is_file())
        assert f'"store":"{server.uri}"'.encode() in written
        assert b"s3cret" not in written
    printed = capfd.readouterr()
    assert "s3cret" not in printed.out + printed.err
    assert "View run" not in printed.out
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(track.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FAILED'")
    assert [run.data.tags["failure"] for run in runs] == [f"invalid: {server.uri}/"]
