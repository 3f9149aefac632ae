"""A real tracking server that can be killed and started again, and a training that is watched while it runs."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from workspace import Workspace

from truefit.tracking.journal import Journal
from truefit.tracking.records import Metrics

TRAIN = ("python", "src/train.py", "data/prepared", "results")


class Server:
    """An MLflow server with its own store, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self.process is not None:
            return
        self.process = subprocess.Popen(
            [
                *(str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(self.port)),
                *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"),
                *("--artifacts-destination", str(self.folder / "artifacts")),
            ],
            cwd=self.folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, "the server ended by itself"
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        """End it with all its processes, wherever they are."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def wait_for_epochs(workspace: Workspace, process: subprocess.Popen[str], epochs: int) -> None:
    """Wait until the journal has so many epochs."""
    while process.poll() is None:
        if max((recorded_epochs(path) for path in workspace.path.glob(".truefit/runs/*.sqlite")), default=0) >= epochs:
            return
        time.sleep(0.02)
    raise AssertionError("it ended before")


def recorded_epochs(journal: Path) -> int:
    """Return how many epochs a journal has; 0 also where it is gone."""
    with suppress(OSError):
        return sum(isinstance(record, Metrics) for record, _ in Journal(journal).read())
    return 0


def complaints(printed: str) -> list[str]:
    """Return the lines on stderr but for those of progress, which a training shows where the machine is slow."""
    return [line for line in printed.splitlines() if not line.startswith("epoch ")]


@contextmanager
def serving_model(workspace: Workspace, run: Run) -> Iterator[Callable[[Any], tuple[int, Any]]]:
    """Give the function that asks the documents' `mlflow models serve` of the run's model; it is stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    model = f"runs:/{run.info.run_id}/model"
    command = ["mlflow", "models", "serve", "--env-manager", "local", "--port", str(port), "-m", model]
    with (workspace.path / f"{port}.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=workspace.path, env=workspace.environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield partial(_answer, server, port)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _answer(server: subprocess.Popen[bytes], port: int, content: Any) -> tuple[int, Any]:
    """Return the status and the answer, once the server takes connections."""
    for _ in range(600):
        assert server.poll() is None
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    else:
        raise AssertionError(f"nobody answers at port {port}")
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", "/invocations", json.dumps(content), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
