"""Recorded runs for the tests of `truefit rerun`: run again by the command, or copied with one thing changed."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from workspace import Workspace

NEW = "SHIFT = 1\n"  # src/truefit/new.py, which no commit has
COMMAND = [sys.executable, "-c", "from truefit.cli.main import main; main()", "rerun"]


def rerun(workspace: Workspace, *arguments: str, status: int = 0, **variables: str) -> Any:
    """Return the report of `truefit rerun --json`, from the clone's own code, after checking the exit status."""
    paths = {"PYTHONPATH": str(workspace.path / "src")}
    return json.loads(workspace.run(*COMMAND, "--json", *arguments, status=status, **paths, **variables).stdout)


def temporary_files(workspace: Workspace) -> Path:
    """Return the clone's own folder for temporary files, and make it known to its commands."""
    folder = workspace.path.with_name(f"{workspace.path.name} temporary")
    folder.mkdir(exist_ok=True)
    workspace.environment["TMPDIR"] = str(folder)
    return folder


def traces(workspace: Workspace) -> tuple[str, ...]:
    """Return all that a rerun must leave as it was: what git knows, DVC's cache, and the folders for temporary files."""
    states = [("status", "--porcelain"), ("worktree", "list"), ("branch", "--all"), ("stash", "list"), ("rev-parse", "HEAD")]
    temporary = sorted(path.name for path in temporary_files(workspace).iterdir())
    cache = sorted(str(path) for path in (workspace.path / ".dvc").rglob("*") if "tmp" not in path.parts)
    return (*(workspace.run("git", *state).stdout for state in states), str(temporary), str(cache))


def interrupted_rerun(
    workspace: Workspace, reference: str, number: signal.Signals, ripe: Callable[[], bool]
) -> tuple[int, str]:
    """Begin `truefit rerun` of a run, send it a signal when it is `ripe`; return its status and the last line of stderr."""
    environment = workspace.environment | {"PYTHONPATH": str(workspace.path / "src")}
    process = subprocess.Popen([*COMMAND, reference], cwd=workspace.path, env=environment, stderr=subprocess.PIPE, text=True)
    latest = time.monotonic() + 120
    while not ripe():
        assert process.poll() is None
        assert time.monotonic() < latest
        time.sleep(0.05)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=120)
    return process.returncode, complaint.strip().splitlines()[-1]


def copy_run(
    workspace: Workspace,
    run: Run,
    *,
    tags: Mapping[str, str | None] | None = None,
    params: Mapping[str, str] | None = None,
    without: Callable[[Metric], bool] = lambda _: False,
    artifacts: Mapping[str, bytes | None] | None = None,
    status: str = "FINISHED",
) -> Run:
    """Return a copy of a run in the store, but for given tags, params and artifacts (None: left out) and some metrics."""
    client = workspace.client
    copy = client.create_run(run.info.experiment_id, run_name="a copy")
    own = {key: value for key, value in run.data.tags.items() if not key.startswith(("mlflow.", "rerun.", "truefit."))}
    all_tags = {**own, **(tags or {})}
    history = [metric for name in run.data.metrics for metric in client.get_metric_history(run.info.run_id, name)]
    client.log_batch(
        copy.info.run_id,
        metrics=[metric for metric in history if not without(metric)],
        params=[Param(key, value) for key, value in {**run.data.params, **(params or {})}.items()],
        tags=[RunTag(key, value) for key, value in all_tags.items() if value is not None],
    )
    with tempfile.TemporaryDirectory() as folder:
        for place in ("record", "state_dict"):
            client.download_artifacts(run.info.run_id, place, folder)
        for name, content in (artifacts or {}).items():
            path = Path(folder, name)
            path.unlink() if content is None else path.write_bytes(content)
        client.log_artifacts(copy.info.run_id, folder)
    client.set_terminated(copy.info.run_id, status)
    return client.get_run(copy.info.run_id)


def artifact(workspace: Workspace, run: Run, name: str) -> bytes:
    """Return an artifact of a run in the clone's own store."""
    path: Path = workspace.path / "mlartifacts" / run.info.run_id / "artifacts" / name
    return path.read_bytes()


def check_identical(workspace: Workspace, recorded: Run, report: Any) -> None:
    """Check the report on the clone's run of two processes, run again in one, and what it left in the store of the clone."""
    assert (report["verdict"], report["recorded"]) == ("identical", recorded.info.run_id)
    # As many as params.yaml says where it was run again.
    assert report["inputs"] == {"params": {"launch.processes": ["2", "1"]}}
    assert {row["name"]: (row["compared"], row["equal"]) for row in report["rows"]} == {
        "data digests": (2, 2),
        "train_loss": (4, 4),
        "validation_loss": (4, 4),
        "learning_rate": (4, 4),
        "state_dict best": (6, 6),  # weight and bias, mean and standard deviation of feature and target
        "state_dict final": (6, 6),
        "test metrics": (5, 5),
    }
    again = workspace.client.get_run(report["again"])
    first = workspace.client.get_run(recorded.info.run_id)
    assert again.info.run_name == f"rerun of {recorded.info.run_name}"
    assert again.data.tags["rerun.of"] == recorded.info.run_id
    assert "test_mse" in again.data.metrics
    assert again.info.artifact_uri.startswith((workspace.path / "mlartifacts").as_uri())
    for run in (again, first):
        assert (run.data.tags["rerun.verdict"], run.data.tags["rerun.by"]) == ("identical", again.info.run_id)
        assert json.loads(artifact(workspace, run, f"rerun/{again.info.run_id}.json")) == report
        assert artifact(workspace, run, f"rerun/{again.info.run_id}.png").startswith(b"\x89PNG")
    tags = [{name: run.data.tags[name] for name in ("processes", "hosts", "shards")} for run in (first, again)]
    assert tags == [{"processes": "2", "hosts": "1", "shards": "2"}, {"processes": "1", "hosts": "1", "shards": "2"}]
    assert [run.data.params["launch.processes"] for run in (first, again)] == ["2", "1"]
