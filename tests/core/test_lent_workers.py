"""Who may do work of another host: those that show that they have its folder, and no others."""

import json
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from truefit.core.addresses import Address, listener
from truefit.core.channel import KEY_FILE, Proof, read_secret
from truefit.core.hosts import Hosts, hosts_for
from truefit.core.launch import LaunchSettings

NONCE = "0" * 64


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Hosts, Address]]:
    """What listens, and where."""
    with ExitStack() as stack:
        where = listener(Address("127.0.0.1", 0))
        address = Address(*where.getsockname())
        yield Hosts(stack, where, 5, tmp_path, "prepare"), address
    with listener(address):  # which is free at once
        pass


def greeted(address: Address) -> tuple[socket.socket, dict[str, Any]]:
    connection = socket.create_connection((address.host, address.port), timeout=20)
    return connection, json.loads(line_of(connection))


def line_of(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (more := connection.recv(1)):
        line += more
    return line


def say(connection: socket.socket, **values: str) -> None:
    connection.sendall(json.dumps(values).encode() + b"\n")


def test_whoever_has_the_folder_is_taken_and_gets_proof_that_the_other_has_it(
    hosts: tuple[Hosts, Address], tmp_path: Path
) -> None:
    connection, greeting = greeted(hosts[1])
    with connection:
        assert greeting["secret"] == str(tmp_path / KEY_FILE)
        assert stat.S_IMODE(Path(greeting["secret"]).stat().st_mode) == 0o600
        secret = read_secret(Path(greeting["secret"]))
        say(connection, challenge=NONCE)
        shown = json.loads(line_of(connection))
        assert Proof(**shown).holds(secret, "stage", NONCE)
        assert secret not in json.dumps([greeting, shown])
        connection.sendall(Proof.of(secret, "host", greeting["challenge"]).model_dump_json().encode() + b"\n")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):  # it is kept, and has nothing to do yet
            connection.recv(1)
        (worker,) = hosts[0].come()
        assert worker.host == socket.gethostname()
        worker.begin("task")
        assert line_of(connection) == b'["task"]\n'


@pytest.mark.parametrize(
    "answer",
    ["0" * 64, "the stage's own", "é", None],
    ids=["wrong", "the stage's own", "not ASCII", "none"],
)
def test_whoever_has_it_not_is_left(hosts: tuple[Hosts, Address], answer: str | None) -> None:
    connection, greeting = greeted(hosts[1])
    with connection:
        say(connection, challenge=greeting["challenge"])
        shown = json.loads(line_of(connection))
        if answer is not None:
            say(connection, host="h", proof=shown["proof"] if answer == "the stage's own" else answer)
        else:
            connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert not hosts[0].come()


@pytest.mark.parametrize(
    "line", [b"GET / HTTP/1.1\r\n", b"[" * 4000 + b"\n", b"x" * 10_000, b'{"challenge": "short"}\n', b"\xff\n"]
)
def test_what_is_no_answer_is_left(hosts: tuple[Hosts, Address], line: bytes) -> None:
    connection, _ = greeted(hosts[1])
    with connection:
        connection.sendall(line)
        with suppress(ConnectionResetError):  # as there was more than it read
            assert connection.recv(1) == b""
    assert not hosts[0].come()


def test_a_host_that_cannot_listen_works_alone_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack, listener(Address("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        launch = LaunchSettings(processes=2, hosts=2, rendezvous=address)
        assert hosts_for(stack, launch, tmp_path, "prepare") is None
    assert capsys.readouterr().err == (
        f"params.yaml: launch.rendezvous: found {address}, allowed: an address of this machine and a free port "
        "(Address already in use); this host has no help from others\n"
    )


@pytest.mark.parametrize("content", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n"])
def test_no_other_file_is_read_as_a_secret(tmp_path: Path, content: str) -> None:
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(ValueError, match="should match"):
        read_secret(tmp_path / KEY_FILE)
    (tmp_path / "other").write_text("0" * 64)
    with pytest.raises(ValueError, match="other"):
        read_secret(tmp_path / "other")
