"""Processes that do tasks for this one: a task is a line of JSON, and so is its answer; nothing is unpickled.

An open file may come with a task, which then need have no name. `pool` has them together with those of other hosts.

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
from tempfile import TemporaryFile
from typing import IO, Any, NoReturn

import truefit
from truefit.core.errors import GARBAGE_AFTER
from truefit.core.signals import Deferred

READ_BYTES = 1 << 16  # of a task, at a time


class EndedError(Exception):
    """A worker ended before it answered; the text says how."""


class Worker:
    """A process that runs a module, whose `main` calls `work`; it ends with the stack."""

    host: str | None = None  # this one

    def __init__(self, stack: ExitStack, threads: int, module: str, *arguments: str) -> None:
        self._socket, theirs = socket.socketpair()
        stack.enter_context(self._socket)
        # The code beside this one, which need not be what is installed.
        paths = [str(Path(truefit.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-P", "-m", module, *arguments]  # -P: no module comes from the current folder
        with Deferred(), theirs:  # a signal waits until it is known what has to be ended
            # In a group of its own: Ctrl-C is for this process, which ends the others.
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), env=environment, process_group=0)
            stack.enter_context(self._process)
            stack.callback(self._process.kill)
        self._answers = stack.enter_context(self._socket.makefile("rb"))

    def fileno(self) -> int:
        """Return the descriptor by which a selector waits for the answer, or the end."""
        return self._socket.fileno()

    def new_file(self, folder: Path) -> IO[bytes]:
        """Return an empty file for a task, which has no name."""
        return TemporaryFile(dir=folder)

    def written(self, file: IO[bytes]) -> IO[bytes]:
        """Return the task's file as it is to be read, when the answer has come."""
        return file

    def begin(self, *arguments: Any, file: IO[bytes] | None = None) -> None:
        """Have a task done, perhaps with a file, when the one before it was answered."""
        line = json.dumps(arguments).encode() + b"\n"
        with suppress(ConnectionError):  # of a process that has ended, as `answer` tells
            sent = socket.send_fds(self._socket, [line], [file.fileno()]) if file is not None else 0
            self._socket.sendall(line[sent:])

    def has_answer(self, readable: bool) -> bool:
        """Say whether `answer` need not wait: where the descriptor is readable."""
        return readable

    def answer(self) -> Any:
        """Return the answer, when it has come; raises EndedError when the process has ended without one."""
        line = b""
        with suppress(ConnectionError):
            line = self._answers.readline()
        if line.endswith(b"\n"):
            return json.loads(line)
        status = self._process.wait()
        raise EndedError(f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}")


def work(do: Callable[..., Any]) -> NoReturn:
    """Answer the tasks of the process that began this one, until it ends or wants no more.

    `do` is given each task and, where there is one, the descriptor or the name of its file, which it has to open and close; it
    returns the answer.
    """
    gc.set_threshold(GARBAGE_AFTER)
    stream, tasks = socket.socket(fileno=0), SimpleQueue[tuple[bytes, list[int]]]()
    threading.Thread(target=_receive, args=(stream, tasks), daemon=True).start()
    while True:
        line, files = tasks.get()
        with suppress(ConnectionError):  # of a process that has ended, at which this one does too
            stream.sendall(json.dumps(do(*json.loads(line), *files)).encode() + b"\n")


def _receive(stream: socket.socket, tasks: SimpleQueue[tuple[bytes, list[int]]]) -> None:
    line, files = b"", list[int]()
    with suppress(ConnectionError):
        while (received := socket.recv_fds(stream, READ_BYTES, 1))[0]:
            line, files = line + received[0], files + received[1]
            if line.endswith(b"\n"):
                if _has_ended(stream):  # while this process began: nothing is to be written any more
                    break
                tasks.put((line, files))
                line, files = b"", []
    os._exit(0)  # in the middle of a task too


def _has_ended(stream: socket.socket) -> bool:
    try:
        return not stream.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
