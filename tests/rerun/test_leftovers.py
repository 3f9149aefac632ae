"""What a rerun leaves that was killed, and that the next one clears it (fault 11)."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from workspace import put_store

from truefit.core.errors import TrackingError
from truefit.rerun.leftovers import FOLDER, clear_leftovers, known_folder, process_environment
from truefit.tracking.names import RERUN_KEY_TAG
from truefit.tracking.store import Store

KEY = "0123456789abcdef"
# A rerun that has come as far as to run a stage, which says so and stays.
RERUN = f"""
import sys
from pathlib import Path
from truefit.rerun.worktree import recorded_workspace

with recorded_workspace(Path.cwd(), False, "{KEY}") as worktree:
    assert worktree.check_out("HEAD") is None
    worktree.dvc(["repro"], {{}})
"""
PIPELINE = "stages:\n  train:\n    cmd: touch {place}/ripe && sleep 600\n"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a store for all tests."""
    return put_store(tmp_path_factory.mktemp("store") / "mlflow.db")


@pytest.fixture
def root(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a pipeline; temporary files have a folder of their own."""
    root, temporary = tmp_path / "root", tmp_path / "temporary"
    for folder in (root / "src", root / ".dvc", temporary):
        folder.mkdir(parents=True)
    (root / "src/stage.py").write_text("")
    (root / ".dvc/config").write_text("")
    (root / "dvc.yaml").write_text(PIPELINE.format(place=tmp_path))
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "one"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(root)
    return root


def killed_rerun(tmp_path: Path) -> None:
    """Begin a rerun and kill it with SIGKILL while its stage runs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", RERUN], env=environment)
    latest = time.monotonic() + 60
    while not (tmp_path / "ripe").exists():
        assert process.poll() is None
        assert time.monotonic() < latest
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def processes(folder: Path) -> list[psutil.Process]:
    """Return the processes that a rerun in a folder below this one has started."""
    running = psutil.process_iter(["environ"])
    return [one for one in running if (one.info["environ"] or {}).get(FOLDER, "").startswith(f"{folder}/")]


def worktrees(root: Path) -> int:
    listed = subprocess.run(["git", "-C", str(root), "worktree", "list"], check=True, capture_output=True, text=True)
    return len(listed.stdout.splitlines())


def test_processes_worktree_folder_and_run_of_a_killed_rerun_are_cleared(root: Path, tmp_path: Path) -> None:
    killed_rerun(tmp_path)
    temporary, store = tmp_path / "temporary", Store()
    assert len(processes(temporary)) >= 2  # DVC and the stage
    assert (len(list(temporary.iterdir())), worktrees(root)) == (1, 2)
    own = subprocess.Popen(["sleep", "600"], cwd=next(temporary.iterdir()) / "tree")  # not of the rerun
    client = store.connect()
    names = {f"{key} {status}": (key, status) for key in (KEY, "other") for status in ("RUNNING", "FINISHED")}
    runs = {}
    for name, (key, status) in names.items():
        experiment = client.create_experiment(name)  # it may have been renamed, or be another
        runs[name] = client.create_run(experiment, tags={RERUN_KEY_TAG: key}).info.run_id
        client.update_run(runs[name], status)
    clear_leftovers(root, store)
    assert own.poll() is None
    own.kill()
    own.wait()
    assert processes(temporary) == []
    assert (list(temporary.iterdir()), list((root / ".truefit/reruns").iterdir()), worktrees(root)) == ([], [], 1)
    ended = {name: client.get_run(run_id).info.status for name, run_id in runs.items()}
    assert ended == {name: "KILLED" if name == f"{KEY} RUNNING" else status for name, (_, status) in names.items()}


class Away:
    """A store that does not answer."""

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except MlflowException:
            raise TrackingError("the store is away") from None

    def connect(self) -> MlflowClient:
        raise MlflowException("away")


def test_rerun_that_goes_on_is_left_alone_and_one_without_a_folder_is_found(root: Path, tmp_path: Path) -> None:
    links, temporary = root / ".truefit/reruns", tmp_path / "temporary"
    with known_folder(root, "goes on", keep=False) as folder:
        (links / f"{KEY}.lock").touch()
        (links / KEY).symlink_to(temporary / "gone")  # as after the machine was started again
        with pytest.raises(TrackingError, match="away"):
            clear_leftovers(root, Away())  # type: ignore[arg-type]
        assert sorted(path.name for path in links.iterdir()) == [KEY, f"{KEY}.lock", "goes on", "goes on.lock"]
        clear_leftovers(root, Store())
        assert sorted(path.name for path in links.iterdir()) == ["goes on", "goes on.lock"]
        assert folder.is_dir()
    assert (list(links.iterdir()), list(temporary.iterdir())) == ([], [])


def test_folder_that_is_kept_is_no_leftover(root: Path) -> None:
    with known_folder(root, KEY, keep=True) as folder:
        (folder / "tree").mkdir()
    clear_leftovers(root, Away())  # type: ignore[arg-type]
    assert folder.is_dir()
    with pytest.raises(ZeroDivisionError), known_folder(root, KEY, keep=True) as folder:
        raise ZeroDivisionError
    assert not folder.exists()
    assert list((root / ".truefit/reruns").iterdir()) == []
    assert process_environment(folder)[FOLDER] == str(folder)
