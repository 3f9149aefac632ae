"""The address of the store, and its experiment: one for all clones, with artifacts where they stay."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from workspace import put_store

from truefit.core.errors import StoreAwayError, TrackingError
from truefit.tracking import connection as module
from truefit.tracking.connection import Connection
from truefit.tracking.database import open_store


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of its own, for tests with experiments of different names."""
    return put_store(tmp_path_factory.mktemp("elsewhere") / "runs.db")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository, and the current folder, which is another as in a temporary workspace of DVC."""
    root, workspace = tmp_path / "root", tmp_path / "workspace"
    root.mkdir()
    workspace.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(workspace)
    return root


def connection(monkeypatch: pytest.MonkeyPatch, uri: str) -> Connection:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Connection()


@pytest.mark.parametrize(
    ("spelled", "uri"),
    [
        ("http://h:5000/", "http://h:5000"),
        ("HTTP://H:5000", "http://h:5000"),
        ("https://me:S3cret@H/mlflow//\n", "https://me:S3cret@h/mlflow"),
        ("sqlite:///sub/../runs.db", "sqlite:///{root}/runs.db"),
        ("sqlite:////x//my runs.db?timeout=20", "sqlite:////x/my runs.db?timeout=20"),
        ("./mlruns", "{root}/mlruns"),
        ("databricks", "databricks"),
        ("postgresql://h/Runs/", "postgresql://h/Runs/"),
    ],
)
def test_a_store_has_one_address_however_it_is_spelled(
    spelled: str, uri: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 13."""
    assert connection(monkeypatch, spelled).uri == uri.format(root=root)


def test_the_repositorys_own_store_is_the_same_when_it_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 13."""
    for uri in ("", f"sqlite:///{root}/mlflow.db", "sqlite:///mlflow.db"):
        assert connection(monkeypatch, uri).address is None


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:s3@cret@h/runs",
        "postgresql://me:s3@c/ret@h/runs",
        "http://me:s3/cret@h",
        "http://me:s3#cret@h",
        "https://t0/ken@h",
        "postgresql://me:s3@cret:x@h:port/runs",
        "postgresql://me:s3cret@h:port/runs",
        "http://me:s3cret@[::1",
        "https://me:s3cret@h:port",
    ],
)
def test_a_sign_that_should_be_encoded_is_refused_without_showing_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 15: what a library takes for the host, it names in its errors; here a part of the password."""
    with pytest.raises(TrackingError, match=r"^MLFLOW_TRACKING_URI: found .*, allowed: .*%40") as caught:
        connection(monkeypatch, uri)
    assert [secret for secret in ("s3", "ret", "t0", "ken") if secret in str(caught.value)] == []


@pytest.mark.parametrize("uri", ["postgresql://me:s3 cret@h/runs", "http://me:s3\x1b[2Jcret@h", "http://me:s3\ncret@h"])
def test_a_blank_in_an_address_is_refused_without_showing_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 15: what comes after it could not be told from the rest of a message."""
    with pytest.raises(TrackingError) as caught:
        connection(monkeypatch, uri)
    line = "MLFLOW_TRACKING_URI: found a blank in it, or a control character, allowed: %20 for a blank"
    assert str(caught.value) == line


def test_an_experiment_that_another_clone_creates_in_the_same_moment_is_taken(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 13: of 8 trainings on a fresh server, 2 were refused."""
    create, made = MlflowClient.create_experiment, []

    def later(client: MlflowClient, *arguments: object) -> str:
        made.append(create(client, "raced", "file:///tmp"))
        return create(client, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "create_experiment", later)
    assert connection(monkeypatch, database).experiment("raced") == made[0]


def test_another_refusal_to_create_an_experiment_is_told(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrackingError, match=r"^MLflow store sqlite:.*/runs\.db: .*[Nn]ame"):
        connection(monkeypatch, database).experiment("x" * 10_000)


@pytest.mark.parametrize("uri", ["postgresql://me:s3cret@h/runs", "mysql+pymysql://h/runs"])
def test_artifacts_of_a_database_used_from_a_workspace_are_in_the_repository(
    uri: str, database: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 13: they went into DVC's workspace, which is deleted."""
    monkeypatch.setattr(module, "open_store", lambda _: open_store(database))  # which stands for one on a server
    found = MlflowClient(database).get_experiment(connection(monkeypatch, uri).experiment(uri))
    assert (found.name, found.artifact_location) == (uri, (root / "mlartifacts").as_uri())


def test_artifacts_of_a_database_that_is_a_file_are_beside_it(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 13: all clones that share it can reach them, and they stay when one of these goes."""
    found = MlflowClient(database).get_experiment(connection(monkeypatch, database).experiment("beside"))
    assert found.artifact_location == Path(database.removeprefix("sqlite:///")).with_name("mlartifacts").as_uri()


@pytest.mark.parametrize(
    ("location", "fault"),
    [
        ("file:///not/here/mlartifacts", "which this machine does not have; share that folder, use a server"),
        ("mlflow-artifacts:/7", "give MLFLOW_TRACKING_URI that server's address"),
    ],
)
def test_an_experiment_whose_artifacts_this_machine_cannot_write_is_refused(
    location: str, fault: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 13: they would go into a folder that nobody else has, or nowhere."""
    MlflowClient(database).create_experiment(location, location)
    with pytest.raises(TrackingError) as caught:
        connection(monkeypatch, database).experiment(location)
    assert str(caught.value).endswith(f"{fault}, or change track.experiment")
    assert f"{location!r} keeps its artifacts " in str(caught.value)


@pytest.mark.parametrize("location", ["s3://bucket/runs", "file:///tmp/of/another"])
def test_an_experiment_that_is_there_keeps_its_place(location: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 13."""
    location = location.replace("/tmp/of", str(Path.cwd()))
    made = MlflowClient(database).create_experiment(location, location)
    assert connection(monkeypatch, database).experiment(location) == made


def test_a_database_server_that_is_away_is_told_at_once_and_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 15; MLflow would try for minutes."""
    import sqlalchemy

    def refuse(*_: object, **__: object) -> None:
        raise sqlalchemy.exc.OperationalError("", {}, Exception("no postgresql://me:s3cret@h/runs"))

    monkeypatch.setattr(sqlalchemy, "create_engine", refuse)
    with pytest.raises(StoreAwayError) as caught:
        connection(monkeypatch, "postgresql://me:s3cret@h/runs").experiment("x")
    assert str(caught.value).startswith("MLflow store postgresql://h/runs: ")
    assert "s3cret" not in str(caught.value)
