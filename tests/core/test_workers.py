"""Workers: they answer task by task, and whatever ends the process that began them, none is left."""

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile

import psutil
import pytest
from helpers_launch import wait_until

from truefit.core.workers import EndedError, Worker

SRC = Path(__file__).parents[2] / "src"

# Answers twice the number that comes, and its own process id; ends at "end"; never answers at "sleep". Writes to a file.
MODULE = """
import os, sys, time
from truefit.core.workers import work

def do(task, file=None):
    if file is not None:
        os.write(file, task.encode())
        return os.close(file)
    if task == "end":
        os._exit(7)
    if task == "sleep":
        time.sleep(1000)
    return [2 * task, os.getpid(), sys.argv[1:]]

if __name__ == "__main__":
    work(do)
"""
# Begins a worker, says which, and waits, as the worker does.
OWNER = """
import sys
from contextlib import ExitStack
from truefit.core.workers import Worker
with ExitStack() as stack:
    worker = Worker(stack, 1, "doubling")
    worker.begin(1)
    print(worker.answer()[1], flush=True)
    worker.begin("sleep")
    worker.answer()
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doubling.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def has_ended(number: int) -> bool:
    try:
        return bool(psutil.Process(number).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_worker_answers_task_by_task_and_ends_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("json.py").write_text("raise SystemExit('a module of the current folder')")
    with ExitStack() as stack:
        worker = Worker(stack, 1, "doubling", "a", "\udcff")
        for number in range(3):
            worker.begin(number)
            doubled, process, arguments = worker.answer()
            assert (doubled, arguments) == (2 * number, ["a", "\udcff"])
        worker.begin("sleep")
    assert has_ended(process)


def test_a_file_without_a_name_comes_with_a_task_however_long_that_is() -> None:
    with ExitStack() as stack:
        worker = Worker(stack, 1, "doubling")
        for text in ("short", "long" * 100_000):
            with TemporaryFile() as file:
                worker.begin(text, file=file)
                assert worker.answer() is None
                file.seek(0)
                assert file.read() == text.encode()


def test_a_worker_that_ends_is_told_with_how() -> None:
    with ExitStack() as stack:
        worker = Worker(stack, 1, "doubling")
        worker.begin("end")
        with pytest.raises(EndedError, match="with status 7"):
            worker.answer()
        worker.begin(1)  # which nobody does
        with pytest.raises(EndedError, match="with status 7"):
            worker.answer()
        killed = Worker(stack, 1, "doubling")
        killed.begin(1)
        os.kill(killed.answer()[1], signal.SIGKILL)
        killed.begin(2)
        with pytest.raises(EndedError, match="by SIGKILL"):
            killed.answer()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_with_the_process_that_began_it(number: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{SRC}:{tmp_path}"}
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    with owner:
        assert owner.stdout is not None
        worker = int(owner.stdout.readline())
        owner.send_signal(number)
        owner.wait()
    wait_until(lambda: has_ended(worker))
