"""Ranks of a training without the training: tests/training/toy_rank.py, started as src/train.py starts its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workspace import ROOT

TOY = ROOT / "tests/training/toy_rank.py"
# What src/train.py does where launch asks for more processes. Arguments: the section as JSON, HOST:PORT or -, the command.
PARENT = """
import json, sys
from truefit.core import errors
from truefit.core.addresses import parse_address
from truefit.core.launch import LaunchSettings
from truefit.training.supervision import start_ranks
settings, joins, *command = sys.argv[1:]
first = None if joins == "-" else parse_address(joins)
sys.exit(errors.run(lambda: sys.exit(start_ranks([sys.executable, *command], LaunchSettings(**json.loads(settings)), first))))
"""
PATIENCE = 90  # seconds for what takes a few on a machine of its own


class Host:
    """The parent of a host's toy ranks, whose ids are in files of `folder`; `before` stands before its command."""

    def __init__(
        self, folder: Path, launch: dict[str, Any], joins: str = "-", seconds: float = 60, before: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.processes = launch["processes"]
        folder.mkdir(exist_ok=True)
        toy = [str(TOY), str(folder), str(seconds), str(launch.get("timeout", 60))]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TORCH_CPP_LOG_LEVEL": "FATAL"}
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", PARENT, json.dumps(launch), joins, *toy],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_ranks(self, attempt: int = 0) -> dict[int, int]:
        """Return the process ids of all hosts' ranks, by rank, once all have met."""
        files = {rank: self.folder / f"{rank}.{attempt}" for rank in range(self.processes)}
        wait_until(lambda: all(file.exists() for file in files.values()) or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()
        return {rank: int(file.read_text()) for rank, file in files.items()}

    def end(self) -> tuple[int, list[str]]:
        """Return the exit status and the lines on stderr."""
        out, complaint = self.process.communicate(timeout=PATIENCE)
        assert out == ""
        return self.process.returncode, complaint.splitlines()


def wait_until(happened: Any) -> None:
    """Wait until the function `happened` says so."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Say whether the process lives; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
