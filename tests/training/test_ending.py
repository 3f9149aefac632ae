"""What a process says that waits for others, or has lost one."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from helpers_launch import PATIENCE, wait_until
from helpers_torture import long
from workspace import ROOT

from truefit.training.ending import loss


@long
def test_ctrl_c_ends_a_process_that_waits_for_the_others() -> None:
    code = "import torch; from truefit.training.group import join_group; join_group(torch.device('cpu'), 30)"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {
        "PYTHONPATH": str(ROOT / "src"),
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    alone = subprocess.Popen([sys.executable, "-c", code], env=os.environ | place, stderr=subprocess.PIPE, text=True)

    def waits() -> bool:
        with socket.socket() as other:
            return other.connect_ex(("127.0.0.1", port)) == 0

    wait_until(waits)
    alone.send_signal(signal.SIGINT)
    assert alone.communicate(timeout=PATIENCE)[1].splitlines()[-1] == "error: stopped by SIGINT"
    assert alone.returncode == 130


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("Timed out waiting 60000ms for recv operation to complete", "rank 1 on b did not answer for 60 s"),
        (
            "[/a/pair.cc:553] Connection closed by peer [10.0.0.2]:56203. This is typically",
            "rank 1 on b closed the connection",
        ),
        ("Failed to recv, got 0 bytes. Connection was likely closed. Did the remote", "rank 1 on b closed the connection"),
        ("Broken pipe", "rank 1 on b closed the connection"),
        ("[/a/b.cc:9] connect: No route to host", "connect: No route to host"),
    ],
)
def test_what_a_lost_connection_means_is_told_in_place_of_the_librarys_words(words: str, said: str) -> None:
    assert loss(RuntimeError(words), 60.0, ["rank 1 on b"]) == f"lost another process of the training: {said}"


def test_one_of_several_that_was_lost_is_told_by_its_address() -> None:
    error = RuntimeError("Read error [10.0.0.2]:56203: Connection reset by peer")
    told = "lost another process of the training: one at 10.0.0.2 closed the connection"
    assert loss(error, 60.0, ["rank 1 on b", "rank 2 on c"]) == told
