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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from helpers_stages import Process
from mlflow.entities import Run
from workspace import Workspace

from truefit.tracking.journal import Journal
from truefit.tracking.records import Metrics

TRAIN = ("python", "src/train.py", "data/prepared", "results")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Service:
    """A process that is ready when it `answers`, which can be killed and started again; `log` has what it printed last."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], answers: Callable[[], bool]
    ) -> None:
        self.folder = folder
        self.log = folder / f"{Path(command[0]).name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._command = command
        self._environment = environment
        self._answers = answers

    def begin(self) -> None:
        """Start it, unless it runs."""
        if self.process is None:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    self._command, cwd=self.folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
                )

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        self.begin()
        assert self.process is not None
        for _ in range(600):
            if self._answers():
                return
            assert self.process.poll() is None, f"it ended by itself: {self.log.read_text()}"
            time.sleep(0.1)
        raise AssertionError(f"no answer: {self.log.read_text()}")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it with all its processes, wherever they are."""
        if self.process is not None:
            os.killpg(self.process.pid, number)
            self.process.wait()
            self.process = None


def answers_http(address: str) -> bool:
    """Say whether a GET of the address succeeds."""
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def answers_tcp(port: int) -> bool:
    """Say whether somebody listens on a port of 127.0.0.1."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Server(Service):
    """An MLflow server with its own store.

    `mlflow server` starts another process that serves; started again, it is that one alone, which takes half as long.
    """

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        command = [
            *(str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        super().__init__(command, folder, environment, partial(answers_http, f"{self.uri}/health"))

    def start(self) -> None:
        super().start()
        assert self.process is not None
        for serving in psutil.Process(self.process.pid).children():
            self._command, self._environment = serving.cmdline(), serving.environ()


def wait_for_epochs(workspace: Workspace, process: Process, epochs: int) -> None:
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
    port = free_port()
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
        if answers_tcp(port):
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"nobody answers at port {port}")
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", "/invocations", json.dumps(content), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
