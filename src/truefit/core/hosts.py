"""Workers of other hosts, for a stage that listens while it has work: whoever shows that it has the stage's folder helps.

They do what processes here do, but that a file for a task has a name, in that folder. `helping` is their side.
"""

import json
import os
import secrets
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from tempfile import NamedTemporaryFile
from typing import IO, Any

from truefit.core.addresses import listener
from truefit.core.channel import KEY_FILE, LINE_BYTES, Challenge, Channel, Greeting, Job, Proof
from truefit.core.code import code_digest, read_code
from truefit.core.errors import TruefitError
from truefit.core.launch import LaunchSettings
from truefit.core.terminal import say

PROOF_SECONDS = 5.0  # for each line of a host that has proved nothing


class HostLostError(Exception):
    """A worker's host went away before the worker answered."""


class HostWorker:
    """A process of another host, as `workers.Worker` is one of this; its files have names in a folder that both have.

    It is lost when nothing has come from its host, which shows each second that it is there, for `timeout` seconds.
    """

    def __init__(self, channel: Channel, host: str, folder: Path, timeout: float) -> None:
        self.host, self._channel, self._folder, self._timeout = host, channel, folder, timeout
        self._heard, self._line = time.monotonic(), b""
        self.close = channel.close

    def fileno(self) -> int:
        """Return the descriptor by which a selector waits for the answer, or the end."""
        return self._channel.fileno()

    def new_file(self, _: Path) -> IO[bytes]:
        """Return an empty file for a task, in the folder that both hosts have."""
        return NamedTemporaryFile(dir=self._folder)

    def written(self, file: IO[bytes]) -> IO[bytes]:
        """Return the task's file as it is to be read: opened anew, since only then a shared file system has to show all."""
        with file:
            return open(file.name, "rb")  # noqa: PTH123 (the caller's to close)

    def begin(self, *arguments: Any, file: IO[bytes] | None = None) -> None:
        """Have a task done, perhaps with a file, when the one before it was answered."""
        self._heard, self._line = time.monotonic(), b""
        with suppress(OSError):  # of a host that is gone, as `answer` tells
            self._channel.send([*arguments, *([] if file is None else [file.name])])

    def has_answer(self, readable: bool) -> bool:
        """Say whether `answer` need not wait; what has come is taken where the descriptor is readable."""
        if readable:
            try:
                lines = self._channel.come()
            except OSError:
                return True
            self._heard = time.monotonic()
            self._line = next(filter(None, lines), self._line)
        return bool(self._line) or time.monotonic() - self._heard > self._timeout

    def answer(self) -> Any:
        """Return the answer, when it has come; raises HostLostError where the host is gone, or silent, without one."""
        try:
            return json.loads(self._line)
        except ValueError as error:
            self.close()
            raise HostLostError from error


class Hosts:
    """Listens for other hosts until the stack ends; a selector sees when there are some of their workers to take by `come`."""

    def __init__(self, stack: ExitStack, where: socket.socket, timeout: float, folder: Path, job: Job) -> None:
        self._stack, self._timeout, self._folder, self._job = stack, timeout, folder, job
        self._secret, self._code = secrets.token_hex(32), code_digest(read_code())
        descriptor = os.open(folder / KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._secret)
        self._listener = stack.enter_context(where)
        self._seen, self._wake = map(stack.enter_context, socket.socketpair())
        self._proven = SimpleQueue[HostWorker]()
        thread = threading.Thread(target=self._listen, daemon=True, name="hosts")
        thread.start()
        stack.callback(self.come)
        stack.callback(thread.join)
        stack.callback(self._listener.shutdown, socket.SHUT_RDWR)

    def fileno(self) -> int:
        """Return the descriptor by which a selector sees that there are workers to take."""
        return self._seen.fileno()

    def come(self) -> list[HostWorker]:
        """Return the workers that have come, which end with the stack."""
        come = []
        while not self._proven.empty():
            come.append(self._proven.get())
            self._stack.callback(come[-1].close)
            self._seen.recv(1)
        return come

    def _listen(self) -> None:
        with suppress(OSError):  # when it is shut down
            while True:
                connection, _ = self._listener.accept()
                # One that says nothing keeps no other from being greeted.
                threading.Thread(target=self._meet, args=(connection,), daemon=True).start()

    def _meet(self, connection: socket.socket) -> None:
        channel = Channel(connection, PROOF_SECONDS)
        challenge = secrets.token_hex(32)
        try:
            channel.send(Greeting(job=self._job, code=self._code, secret=str(self._folder / KEY_FILE), challenge=challenge))
            asked = Challenge.model_validate_json(channel.receive(LINE_BYTES))
            channel.send(Proof.of(self._secret, "stage", asked.challenge))
            proof = Proof.model_validate_json(channel.receive(LINE_BYTES))
            if not proof.holds(self._secret, "host", challenge):
                raise ConnectionRefusedError
            channel.trust(self._timeout)
            self._proven.put(HostWorker(channel, proof.host, self._folder, self._timeout))
            self._wake.send(b".")
        except (OSError, ValueError):
            channel.close()


def hosts_for(stack: ExitStack, launch: LaunchSettings, folder: Path, job: Job) -> Hosts | None:
    """Return the other hosts that come to the `job`, as `launch` says, if any may; `folder` is its own, and known to them.

    A job that cannot listen is done by this host alone, and says so.
    """
    if launch.address is None:
        return None
    try:
        where = listener(launch.address)
    except TruefitError as error:
        say(f"{error}; this host has no help from others", error=True)
        return None
    return Hosts(stack, where, launch.timeout, folder, job)
