"""The MLflow store: where it is, how a run ends, what it holds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from workspace import ROOT

from truefit import tracking
from truefit.errors import TrackingError, TrainingError
from truefit.table import CsvSource, Table
from truefit.tracking import DIGEST_TAG, Store, TrackSettings


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store is opened once, since creating one takes seconds."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(autouse=True)
def environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(root))


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return Store(TrackSettings(experiment=request.node.name))


def fetch(root: Path, run_id: str) -> MlflowRun:
    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}").get_run(run_id)


def test_store_and_artifacts_lie_in_the_main_repositorys_root(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store(TrackSettings(experiment="place")).start_run("name", {}) as run:
        run.log_artifacts({"folder/file.txt": b"content"})
    stored = root / "mlartifacts" / run.run_id / "artifacts/folder/file.txt"
    assert stored.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == []


def test_run_ends_finished_with_all_its_metrics(root: Path, store: Store) -> None:
    with store.start_run("name", {"own": "tag"}) as run:
        for step in range(1, 1501):
            run.log_metrics({"loss": 1 / step, "other": step}, step)
    found = fetch(root, run.run_id)
    assert (found.info.status, found.info.run_name, found.data.tags["own"]) == ("FINISHED", "name", "tag")
    history = MlflowClient(f"sqlite:///{root / 'mlflow.db'}").get_metric_history(run.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / step) for step in range(1, 1501)]


def test_metrics_are_sent_together_and_not_one_by_one(root: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.start_run("name", {}) as run:
        run.log_metrics({"loss": 1.0}, 1)
        assert fetch(root, run.run_id).data.metrics == {}
        monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
        run.log_metrics({"loss": 0.5}, 2)
        assert fetch(root, run.run_id).data.metrics == {"loss": 0.5}


def test_error_leaves_the_run_failed_with_its_reason_and_its_metrics(root: Path, store: Store) -> None:
    with pytest.raises(TrainingError), store.start_run("name", {}) as run:
        run.log_metrics({"loss": 1.0}, 1)
        raise TrainingError("epoch 2, batch 1: the reason")
    found = fetch(root, run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.tags["failure"] == "epoch 2, batch 1: the reason"
    assert found.data.metrics == {"loss": 1.0}


def test_interrupt_leaves_the_run_killed(root: Path, store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), store.start_run("name", {}) as run:
        raise KeyboardInterrupt
    found = fetch(root, run.run_id)
    assert (found.info.status, found.data.tags["failure"]) == ("KILLED", "KeyboardInterrupt")


def test_more_params_than_the_store_takes_at_once(root: Path, store: Store) -> None:
    params = {f"section.key{number}": number for number in range(250)}
    with store.start_run("name", {}) as run:
        run.log_params({**params, "list": [1.5, 2], "none": None, "word": "as it is", "flag": True})
    logged = fetch(root, run.run_id).data.params
    assert len(logged) == 254
    assert (logged["list"], logged["none"], logged["word"], logged["flag"]) == ("[1.5, 2]", "null", "as it is", "true")


def test_dataset_has_the_digest_of_the_whole_csv(root: Path, store: Store) -> None:
    table = Table(
        csv=CsvSource(path="data/own.csv", sha256="0123456789abcdef" * 4),
        features=["a", "b"],
        target="c",
        dtype="float32",
        rows={"train": 8, "validation": 1, "test": 1},
        mean=[0, 0, 0],
        std=[1, 1, 1],
        sha256={"train": "", "validation": "", "test": ""},
    )
    with store.start_run("name", {}) as run:
        run.log_dataset(table)
    inputs = fetch(root, run.run_id).inputs
    assert inputs is not None
    (dataset,) = (given.dataset for given in inputs.dataset_inputs)
    assert (dataset.name, dataset.digest) == ("own.csv", "0123456789abcdef0123456789abcdef0123")
    assert json.loads(str(dataset.source)) == {"uri": "data/own.csv"}
    assert [column["name"] for column in json.loads(str(dataset.schema))["mlflow_colspec"]] == ["a", "b", "c"]
    assert json.loads(str(dataset.profile))["num_rows"] == 10


def test_name_comes_from_the_settings_or_carries_the_experiments(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "olive-tree")
    with store.start_run("name", {}) as run:
        pass
    found = fetch(root, run.run_id)
    assert (found.info.run_name, found.data.tags["dvc.exp"]) == ("name (olive-tree)", "olive-tree")
    with Store(TrackSettings(experiment="own name", run_name="mine")).start_run("name", {}) as run:
        pass
    assert fetch(root, run.run_id).info.run_name == "mine"


def test_evaluation_joins_the_latest_run_of_its_model(root: Path, store: Store) -> None:
    ids = []
    for _ in range(2):
        with store.start_run("name", {DIGEST_TAG: "d1"}) as run:
            ids.append(run.run_id)
    with store.start_run("another model", {DIGEST_TAG: "d2"}):
        pass
    with store.resume_run("d1") as run:
        run.log_metrics({"test_mse": 0.25}, 0)
    assert run.run_id == ids[1]
    found = fetch(root, run.run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"test_mse": 0.25})
    assert fetch(root, ids[0]).data.metrics == {}


def test_evaluation_prefers_the_run_of_its_own_experiment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "mine")
    with store.start_run("name", {DIGEST_TAG: "d1"}) as mine:
        pass
    monkeypatch.setenv("DVC_EXP_NAME", "anothers")
    with store.start_run("name", {DIGEST_TAG: "d1"}) as other:
        pass
    monkeypatch.setenv("DVC_EXP_NAME", "mine")
    with store.resume_run("d1") as run:
        assert run.run_id == mine.run_id
    monkeypatch.delenv("DVC_EXP_NAME")
    with store.resume_run("d1") as run:
        assert run.run_id == other.run_id


def test_evaluation_without_a_run_opens_one_of_its_own(root: Path, store: Store) -> None:
    with pytest.raises(TrainingError), store.start_run("failed", {DIGEST_TAG: "abcdef123456"}):
        raise TrainingError("a failed run has no model to evaluate")
    with store.resume_run("abcdef123456") as run:
        run.log_metrics({"test_mse": 0.25}, 0)
    found = fetch(root, run.run_id)
    assert found.info.run_name == "evaluation of abcdef12"
    assert (found.info.status, found.data.tags[DIGEST_TAG]) == ("FINISHED", "abcdef123456")
    assert found.data.metrics == {"test_mse": 0.25}


def test_store_that_does_not_answer_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"^MLflow store http://127\.0\.0\.1:9: ") as caught:
        Store(TrackSettings())
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deleted_experiment_is_refused_with_the_way_back(root: Path, store: Store, request: pytest.FixtureRequest) -> None:
    client, name = MlflowClient(f"sqlite:///{root / 'mlflow.db'}"), request.node.name
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(TrackingError) as caught:
        Store(TrackSettings(experiment=name))
    assert str(caught.value) == (
        f"MLflow store sqlite:///{root / 'mlflow.db'}: {name!r} is deleted; "
        f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`, or change track.experiment"
    )


def test_moved_repository_is_refused_before_its_artifacts_go_elsewhere(
    root: Path, store: Store, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(root / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(TrackingError) as caught:
        Store(TrackSettings(experiment=request.node.name))
    assert str(caught.value) == (
        f"MLflow store sqlite:///{tmp_path / 'mlflow.db'}: {request.node.name!r} keeps its artifacts in "
        f"file://{root / 'mlartifacts'}; move the repository back, or change track.experiment"
    )


def test_experiment_made_in_the_ui_is_taken_with_its_own_folder(
    root: Path, store: Store, request: pytest.FixtureRequest
) -> None:
    client, name = MlflowClient(f"sqlite:///{root / 'mlflow.db'}"), f"{request.node.name} in the UI"
    client.create_experiment(name, f"file://{root / 'mlartifacts'}/7")
    with Store(TrackSettings(experiment=name)).start_run("name", {}) as run:
        run.log_artifacts({"record/file.txt": b"content"})
    assert (root / "mlartifacts/7" / run.run_id / "artifacts/record/file.txt").read_bytes() == b"content"


def test_store_whose_driver_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:secret@127.0.0.1:9/x")
    with pytest.raises(TrackingError) as caught:
        Store(TrackSettings())
    assert str(caught.value).startswith("MLflow store postgresql://127.0.0.1:9/x: its driver is not installed: No module")


def test_store_that_fails_as_well_does_not_hide_the_reason(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(root / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    store = Store(TrackSettings(experiment="broken"))
    with pytest.raises(TrainingError, match="the reason"), store.start_run("name", {}) as run:
        run.log_metrics({"loss": 1.0}, 1)
        (tmp_path / "mlflow.db").write_bytes(b"no database any more" * 1000)
        raise TrainingError("the reason")


def test_two_processes_may_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    code = "from truefit.tracking import *; Store(TrackSettings()).start_run('name', {}).__enter__()"
    environment = {"DVC_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("truefit")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2
