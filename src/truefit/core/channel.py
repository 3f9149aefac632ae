"""Lines of JSON between two hosts, and the proof that both have the same folder of a shared file system."""

import hmac
import json
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter

BEAT_SECONDS = 1.0  # between two signs that a host which helps is there
LINE_BYTES = 4096  # of a line from somebody who has proved nothing
KEY_FILE = "hosts.key"  # which only those can read who have its folder
Job = Literal["prepare", "predict"]
Secret = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Greeting(BaseModel, extra="forbid", frozen=True):
    """What a stage that would have its work done by other hosts says first: which work, by which code, with which secret."""

    version: Literal["truefit parts 1"] = "truefit parts 1"
    job: Job
    code: str
    secret: str  # the path of its file
    challenge: Secret


class Challenge(BaseModel, extra="forbid", frozen=True):
    """What the other host has the stage prove first."""

    challenge: Secret


class Proof(BaseModel, extra="forbid", frozen=True):
    """The answer to a challenge, and who gives it."""

    host: str = Field(max_length=255)
    proof: str

    @classmethod
    def of(cls, secret: str, role: Literal["stage", "host"], challenge: str) -> Self:
        """Return this machine's answer, which shows nothing of the secret."""
        return cls(host=socket.gethostname(), proof=_proof(secret, role, challenge))

    def holds(self, secret: str, role: Literal["stage", "host"], challenge: str) -> bool:
        """Say whether who answered has the secret."""
        return hmac.compare_digest(self.proof.encode(), _proof(secret, role, challenge).encode())


def _proof(secret: str, role: str, challenge: str) -> str:
    return hmac.digest(secret.encode(), f"{role} {challenge}".encode(), "sha256").hex()


class Channel:
    """A connection to another host, which sends a line for each that it is sent: the first ones within `patience` seconds.

    An end, silence or a broken link is an OSError.
    """

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._part = b""
        connection.settimeout(patience)

    def fileno(self) -> int:
        """Return the descriptor by which a selector waits for a line, or the end."""
        return self._connection.fileno()

    def send(self, value: Any) -> None:
        """Send a value as a line."""
        text = value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value)
        self._connection.sendall(text.encode() + b"\n")

    def receive(self, most: int = -1) -> bytes:
        """Return the next line, of so many bytes at most."""
        line = self._lines.readline(most)
        if not line.endswith(b"\n"):
            raise ConnectionResetError("ended, or too long a line")
        return line

    def beat(self) -> None:
        """Show that this host is there."""
        self._connection.sendall(b"\n")

    def come(self) -> list[bytes]:
        """Return the lines that have come, some of them empty, each a beat; for what comes once both trust each other."""
        if not (received := self._connection.recv(1 << 16)):
            raise ConnectionResetError("ended")
        *lines, self._part = (self._part + received).split(b"\n")
        return lines

    def trust(self, timeout: float) -> None:
        """From now on let the other host take its time, but find out within `timeout` seconds when it is gone."""
        seconds = max(1, int(timeout))
        probes = {"TCP_KEEPIDLE": max(1, seconds // 2), "TCP_KEEPINTVL": max(1, seconds // 8), "TCP_KEEPCNT": 4}
        self._connection.settimeout(timeout)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (probes | {"TCP_USER_TIMEOUT": 1000 * seconds}).items():
            if hasattr(socket, name):  # not on each system
                self._connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def close(self) -> None:
        """End the connection."""
        self._lines.close()
        self._connection.close()


def read_secret(path: Path) -> str:
    """Return the secret in a file; raises OSError or ValueError where there is no such file, or another one."""
    if path.name != KEY_FILE:
        raise ValueError(path)
    with path.open("rb") as file:
        return TypeAdapter(Secret).validate_python(file.read(LINE_BYTES).decode())
