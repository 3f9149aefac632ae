"""`make ui` of a workspace, on a free port."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from workspace import Workspace


@contextmanager
def served(workspace: Workspace) -> Iterator[str]:
    """Give the address of a `make ui`, which is stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The environment that runs this test is set up already, so make is told to leave it.
    command = ["make", "--assume-old=.venv/.ready", "ui", f"PORT={port}"]
    server = subprocess.Popen(
        command,
        cwd=workspace.path,
        env=workspace.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(600):
            if server.poll() is not None or _answers(port):
                break
            time.sleep(0.1)
        assert server.poll() is None
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
