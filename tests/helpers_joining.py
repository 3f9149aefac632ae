"""`truefit join` beside stages and commands of this process, which it helps."""

import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers_launch import PATIENCE
from workspace import ROOT

from truefit.core.hosts import Hosts, hosts_for
from truefit.core.launch import LaunchSettings

JOIN = [sys.executable, "-c", "from truefit.cli.main import main; main()", "join"]


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def make_clone(folder: Path, launch: LaunchSettings) -> None:
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(f"launch: {launch.model_dump_json()}\n")


@contextmanager
def joining(launch: LaunchSettings, folder: Path = Path()) -> Iterator["subprocess.Popen[str]"]:
    """Run `truefit join` in a folder, for a block."""
    environment = {"PYTHONPATH": str(ROOT / "src")}
    command = [*JOIN, str(launch.address)]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def hold(monkeypatch: pytest.MonkeyPatch, module: ModuleType, until: Callable[[Hosts], object]) -> None:
    """Let what a module does for prepare or predict go on when it listens and `until` has returned."""

    def listen(stack: ExitStack, *arguments: Any) -> Hosts | None:
        hosts = hosts_for(stack, *arguments)
        assert hosts is not None
        until(hosts)
        return hosts

    monkeypatch.setattr(module, "hosts_for", listen)


def wait_for_help(hosts: Hosts) -> None:
    assert select.select([hosts], [], [], PATIENCE)[0]


def line_with(process: "subprocess.Popen[str]", text: str) -> str:
    """Return the next line on stderr that has this text."""
    assert process.stderr is not None
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    while text not in (line := process.stderr.readline()):
        assert line
    timer.cancel()
    return line.removesuffix("\n")
