"""Processes that do tasks for this one: a task is a line of JSON, and so is its answer; nothing is unpickled.

A worker ends with the block that began it, and with this process, however that ends.
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

import truefit
from truefit.core.errors import GARBAGE_AFTER


class EndedError(Exception):
    """A worker ended before it answered; the text says how."""


class Worker:
    """A process that runs a module, whose `main` calls `work`; it ends with the stack."""

    def __init__(self, stack: ExitStack, threads: int, module: str, *arguments: str) -> None:
        self._socket, theirs = socket.socketpair()
        stack.enter_context(self._socket)
        # The code beside this one, which need not be what is installed.
        paths = [str(Path(truefit.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-P", "-m", module, *arguments]  # -P: no module comes from the current folder
        with theirs:
            # In a group of its own: Ctrl-C is for this process, which ends the others.
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), env=environment, process_group=0)
        stack.enter_context(self._process)
        stack.callback(self._process.kill)
        self._answers = stack.enter_context(self._socket.makefile("rb"))

    def fileno(self) -> int:
        """Return the descriptor by which a selector waits for the answer, or the end."""
        return self._socket.fileno()

    def begin(self, task: Any) -> None:
        """Have a task done, when the one before it was answered."""
        with suppress(ConnectionError):  # of a process that has ended, as `answer` tells
            self._socket.sendall(json.dumps(task).encode() + b"\n")

    def answer(self) -> Any:
        """Return the answer, when it has come; raises EndedError when the process has ended without one."""
        line = b""
        with suppress(ConnectionError):
            line = self._answers.readline()
        if line.endswith(b"\n"):
            return json.loads(line)
        status = self._process.wait()
        raise EndedError(f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}")


def work(do: Callable[[Any], Any]) -> NoReturn:
    """Answer the tasks of the process that began this one by what `do` returns of each, until it ends or wants no more."""
    gc.set_threshold(GARBAGE_AFTER)
    stream, tasks = socket.socket(fileno=0), SimpleQueue[bytes]()
    threading.Thread(target=_receive, args=(stream, tasks.put), daemon=True).start()
    while True:
        stream.sendall(json.dumps(do(json.loads(tasks.get()))).encode() + b"\n")


def _receive(stream: socket.socket, put: Callable[[bytes], object]) -> None:
    with suppress(ConnectionError):
        for line in stream.makefile("rb"):
            put(line)
    os._exit(0)  # in the middle of a task too
