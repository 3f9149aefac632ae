"""What MLflow shows beside a run's own numbers: its model, the grid that it belongs to, and the machine that it ran on."""

import hashlib
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import helpers_tracking
import pytest
from helpers_model import download_model, model_of
from helpers_tracking import TABLE, digest_of, origin, refuse, waiting
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from truefit.core.errors import StoppedError, TrackingError
from truefit.model import serving
from truefit.tracking import logged_model, store
from truefit.tracking.names import DIGEST_TAG
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.sending import Sender
from truefit.tracking.store import Store
from truefit.tracking.system_metrics import SystemMetrics

DIGEST = hashlib.sha256(b"a model").hexdigest()
SYSTEM = (
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL",
    "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING",
)


@pytest.fixture(autouse=True)
def no_settings(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SYSTEM:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(root: Path) -> MlflowClient:
    return helpers_tracking.client(root)


def trained(track: TrackSettings, word: str = "name", log: Callable[[Run], object] = str) -> Run:
    """Run a training, another for each experiment and word, that logs what `log` does."""
    with Store().training_run(track, word, digest_of(track, word), origin) as run:
        log(run)
    run.end()
    return run


def with_model(run: Run) -> None:
    run.log_model(serving, {name: name.encode() for name in ("model.pt", "model.json")}, TABLE)
    run.set_tags({DIGEST_TAG: DIGEST})


def runs_of(client: MlflowClient, track: TrackSettings) -> list[MlflowRun]:
    experiment = client.get_experiment_by_name(track.experiment)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def answer_lost(method: Any) -> Callable[..., None]:
    """Return a method of MLflow's client that does what it does and then fails."""

    def call(*arguments: Any) -> None:
        method(*arguments)
        raise MlflowException("the answer was lost")

    return call


# --- its model (fault 20)


@pytest.mark.filterwarnings("ignore")  # mlflow's own, of its types and of pandas
def test_a_run_has_one_logged_model_wherever_its_sending_is_cut_off(
    root: Path, track: TrackSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "send", refuse)
        trained(track, log=with_model)
    (journal,) = waiting(root, track)
    for name in ("create_logged_model", "log_model_artifact", "log_outputs", "finalize_logged_model"):
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, name, answer_lost(getattr(MlflowClient, name)))
            with pytest.raises(TrackingError, match="the answer was lost"):
                Store().sender.send(journal)
    Store().sender.send(journal)

    (run,) = runs_of(client, track)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.name, model.status, model.source_run_id) == ("model", "READY", run.info.run_id)
    assert model_of(client, run).model_id == model.model_id
    packed = download_model(client, run, tmp_path)
    assert (packed / "data/model/model.pt").read_bytes() == b"model.pt"
    assert (packed / "MLmodel").exists()
    assert "model" not in {item.path for item in client.list_artifacts(run.info.run_id)}  # a second time


@pytest.mark.filterwarnings("ignore")
def test_the_scores_of_an_evaluation_are_those_of_the_model_and_both_go_with_a_run_that_is_deleted(
    track: TrackSettings, client: MlflowClient
) -> None:
    run = trained(track, log=with_model)
    with Store().evaluation_run(track, DIGEST) as evaluation:
        evaluation.log_metrics({"test_mse": 0.5}, 0)
    (found,) = runs_of(client, track)
    assert (evaluation.run_id, found.data.metrics) == (run.run_id, {"test_mse": 0.5})
    (model,) = client.search_logged_models([found.info.experiment_id])
    assert [(metric.key, metric.value) for metric in model.metrics or []] == [("test_mse", 0.5)]

    logged_model.delete_run(client, found.info.run_id)
    assert runs_of(client, track) == []
    assert list(client.search_logged_models([found.info.experiment_id])) == []


@pytest.mark.filterwarnings("ignore")
def test_a_server_before_mlflow_3_gets_all_of_a_run_but_its_model(
    track: TrackSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise MlflowException("404", ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(MlflowClient, "search_logged_models", missing)
    trained(track, log=with_model)
    with Store().evaluation_run(track, DIGEST) as evaluation:
        evaluation.log_metrics({"test_mse": 0.5}, 0)
    (run,) = runs_of(client, track)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"test_mse": 0.5})
    assert "model/MLmodel" in run.data.tags["truefit.skipped"]


# --- its grid (fault 20)


@pytest.fixture
def in_grid(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained is an experiment of the grid `rates`, in a workspace as DVC's queue has."""
    workspace = root / ".dvc/tmp/exps/temporary"
    workspace.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "c" * 40)
    monkeypatch.setenv("DVC_EXP_NAME", "rates-1")


def check_one_parent(client: MlflowClient, track: TrackSettings, children: int) -> None:
    """Check that so many runs of a grid have one parent, which has ended and is not among those with the grid's tag."""
    runs = runs_of(client, track)
    (parent,) = (run for run in runs if "dvc.grid" not in run.data.tags)
    assert (parent.info.run_name, parent.info.status) == ("rates", "FINISHED")
    expected = {"dvc.exp": "rates-1", "dvc.grid": "rates", "dvc.baseline": "c" * 40, "mlflow.parentRunId": parent.info.run_id}
    tags = [run.data.tags for run in runs if run.info.run_id != parent.info.run_id]
    assert [{name: tag[name] for name in expected} for tag in tags] == [expected] * children


@pytest.mark.usefixtures("in_grid")
def test_a_grid_of_workers_that_begin_at_once_has_one_parent(
    track: TrackSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create: Any = MlflowClient.create_run

    def slow(*arguments: Any) -> Any:
        time.sleep(0.2)
        return create(*arguments)

    monkeypatch.setattr(MlflowClient, "create_run", slow)
    with ThreadPoolExecutor() as workers:
        list(workers.map(partial(trained, track), "abcd"))
    check_one_parent(client, track, 4)


@pytest.mark.usefixtures("in_grid")
def test_a_parent_whose_creation_was_cut_off_is_taken_and_ended(
    root: Path, track: TrackSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "send", refuse)
        trained(track)
    (journal,) = waiting(root, track)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", answer_lost(MlflowClient.create_run))
        with pytest.raises(TrackingError, match="the answer was lost"):
            Store().sender.send(journal)
    assert [run.info.status for run in runs_of(client, track)] == ["RUNNING"]
    Store().sender.send(journal)
    check_one_parent(client, track, 1)


@pytest.mark.usefixtures("in_grid")
def test_of_two_parents_from_two_machines_at_once_the_first_counts(
    track: TrackSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create: Any = MlflowClient.create_run

    def second(self: MlflowClient, experiment: str, start_time: int, tags: dict[str, str], name: str) -> MlflowRun:
        if name == "rates":
            create(self, experiment, start_time - 1, tags, name)
        run: MlflowRun = create(self, experiment, start_time, tags, name)
        return run

    monkeypatch.setattr(MlflowClient, "create_run", second)
    trained(track)
    check_one_parent(client, track, 1)


def test_an_experiment_that_is_no_grid_has_no_parent(
    root: Path, track: TrackSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "olive-tree")
    trained(track)
    # `dvc exp run --name resnet-50` runs in the repository itself, where no grid runs.
    monkeypatch.setenv("DVC_EXP_NAME", "resnet-50")
    monkeypatch.chdir(root)
    trained(track, "other")
    tags = [run.data.tags for run in runs_of(client, track)]
    assert [tag["dvc.exp"] for tag in tags] == ["resnet-50", "olive-tree"]
    assert all({"dvc.grid", "mlflow.parentRunId"}.isdisjoint(tag) for tag in tags)


# --- the machine (fault 20)


def test_a_training_that_is_resumed_records_system_metrics_beside_its_epochs(
    track: TrackSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "2")
    monkeypatch.setattr(store, "SystemMetrics", partial(SystemMetrics, 0))

    def measured(run: Run, samples: int) -> None:
        latest = time.monotonic() + 60
        while run._sample < samples:
            assert time.monotonic() < latest
            time.sleep(0.01)

    def stopped(run: Run) -> None:
        run.log_metrics({"loss": 0.5}, 1)
        measured(run, 5)
        raise StoppedError(signal.SIGTERM, "after 1 epoch")

    def resumed(run: Run) -> None:
        measured(run, 8)
        run.log_metrics({"loss": 0.5}, 1)  # again, from the checkpoint
        run.log_metrics({"loss": 0.25}, 2)

    with pytest.raises(StoppedError):
        trained(track, log=stopped)
    trained(track, log=resumed)
    (run,) = runs_of(client, track)
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]
    names = {name for name in run.data.metrics if name != "loss"}
    assert names >= {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    for name in names:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        assert steps == list(range(len(steps)))
        assert len(steps) > 8


def test_a_training_shorter_than_a_minute_and_one_whose_user_says_so_record_no_system_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.001")
    short = SystemMetrics()
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    recorded: list[Any] = []
    for machine in (short, SystemMetrics(0)):
        with machine.recorded(recorded.append):
            time.sleep(0.1)
    assert recorded == []


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "often", "Failed to convert 'often' for MLFLOW_SYSTEM"),
        ("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "-1", "INTERVAL: found -1.0, allowed: a number above 0"),
        ("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "-2", "LOGGING: found -2, allowed: a number above 0"),
        ("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "no", "LOGGING value must be one of"),
    ],
)
def test_an_environment_variable_with_a_wrong_value_is_refused_before_the_training(
    name: str, value: str, fault: str, track: TrackSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TrackingError, match=fault):
        trained(track)
    assert runs_of(client, track) == []
