"""`truefit join` where there is no training to take part in."""

import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers_torture import long
from workspace import ROOT

from truefit.cli.joining import take_part
from truefit.core.errors import TruefitError

COMMAND = [sys.executable, "-c", "from truefit.cli.main import main; main()", "join"]
OTHERS = [b"", b"SSH-2.0-OpenSSH_9.2\r\n"]
HOSTS = "launch: {processes: 2, hosts: 2, rendezvous: '127.0.0.1:29500'}\n"


@pytest.fixture(autouse=True)
def _in_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text(HOSTS)


def refusal(address: str) -> str:
    """Return the line of `truefit join`."""
    done = subprocess.run([*COMMAND, address], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr.removesuffix("\n")


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.1:0", "10.0.0.1:port", ":29500", "me@10.0.0.1:29500", "a/b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(TruefitError) as caught:
        take_part(address)
    assert str(caught.value) == f"{address}: found no address, allowed: HOST:PORT, such as 10.0.0.1:29500"


def test_a_name_that_nobody_knows_is_refused() -> None:
    assert refusal("nowhere.invalid:29500").startswith("error: nowhere.invalid:29500: nowhere.invalid: ")


def test_settings_for_one_host_are_refused() -> None:
    Path("params.yaml").write_text("launch: {processes: 2}\n")
    with pytest.raises(TruefitError, match=r"^params.yaml: launch.hosts: found 1, allowed: as on the first host, 2 or more$"):
        take_part("127.0.0.1:29500")


def test_a_folder_without_the_pipeline_is_refused() -> None:
    Path("dvc.yaml").unlink()
    with pytest.raises(TruefitError, match=r"^dvc.yaml: No such file or directory; run it in a clone of the first host's"):
        take_part("127.0.0.1:29500")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", *(pytest.param(text, marks=long) for text in OTHERS)])
def test_a_port_where_something_else_listens_is_refused(answer: bytes) -> None:
    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            kept.append(connection)
            connection.sendall(answer)

    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=serve, daemon=True).start()
        assert refusal(address).startswith(f"error: {address}: what listens there ")
        server.shutdown(socket.SHUT_RDWR)
    for connection in kept:
        connection.close()


@long
def test_a_server_of_torch_s_that_belongs_to_another_training_is_refused() -> None:
    code = "import torch.distributed as d; s = d.TCPStore('127.0.0.1', 0, is_master=True); print(s.port, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        address = f"127.0.0.1:{other.stdout.readline().strip()}"
        expected = "what listens there is no training of this version that waits for hosts"
        assert refusal(address) == f"error: {address}: {expected}"
        other.kill()


@long
def test_ctrl_c_ends_the_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with subprocess.Popen([*COMMAND, address], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        waits = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "error: stopped by SIGINT while it waited for other hosts\n"
    assert waits == f"waiting for a training that listens at {address}; for now: Connection refused\n"
    assert process.returncode == 130
