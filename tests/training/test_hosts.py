"""Ranks of two hosts, here both on loopback: how these meet, part, and tell each other why."""

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers_launch import PATIENCE, Host, is_running, wait_until
from helpers_torture import long

from truefit.core.addresses import Address
from truefit.core.errors import TruefitError
from truefit.core.launch import LaunchSettings
from truefit.training.board import Board, serve
from truefit.training.meeting import GREETING, Meeting

HERE = socket.gethostname()
GO_ON = "`dvc repro` goes on from the last checkpoint"
THERE = "`dvc repro` on the first host goes on from the last checkpoint"
KILLED = "was killed by SIGKILL (is the memory enough?)"
PORT = 29500


@pytest.fixture
def launch() -> dict[str, Any]:
    """Two hosts of one rank each, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {"processes": 2, "hosts": 2, "rendezvous": f"127.0.0.1:{port}", "timeout": 20.0}


def joined(folder: Path, launch: dict[str, Any], seconds: float = 60) -> tuple[Host, Host]:
    return Host(folder, launch, seconds=seconds), Host(folder, launch, launch["rendezvous"], seconds)


@long
def test_a_host_that_joins_early_waits_and_ends_with_the_training(tmp_path: Path, launch: dict[str, Any]) -> None:
    address = launch["rendezvous"]
    second = Host(tmp_path, launch, address, seconds=0)
    assert second.process.stderr is not None
    waits = second.process.stderr.readline()
    first = Host(tmp_path, launch, seconds=0)
    assert first.end() == (0, [f"waiting for 1 more host: truefit join {address} there"])
    assert second.end() == (0, [])
    assert waits == f"waiting for a training that listens at {address}; for now: Connection refused\n"


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=long)])
def test_both_hosts_name_the_rank_that_was_killed(tmp_path: Path, launch: dict[str, Any], rank: int) -> None:
    first, second = joined(tmp_path, launch)
    ranks = first.wait_for_ranks()
    os.kill(ranks[rank], signal.SIGKILL)
    line = f"error: rank {rank} on {HERE} {KILLED}"
    status, lines = first.end()
    assert (status, lines[1:]) == (2, [f"{line}; {GO_ON}"])
    status, lines = second.end()
    assert (status, lines[-1]) == (2, f"{line}; {THERE}")
    assert not any(map(is_running, ranks.values()))


@long
def test_ranks_of_both_hosts_start_again(tmp_path: Path, launch: dict[str, Any]) -> None:
    first, second = joined(tmp_path, launch | {"restarts": 1}, seconds=3)
    os.kill(first.wait_for_ranks()[1], signal.SIGKILL)
    first.wait_for_ranks(attempt=1)
    warning = f"warning: rank 1 on {HERE} {KILLED}; going on from the last checkpoint, restart 1 of 1"
    status, lines = first.end()
    assert (status, lines[1:]) == (0, [warning])
    assert second.end()[0] == 0


@long
def test_a_signal_to_the_host_that_joined_stops_the_training_after_a_checkpoint(
    tmp_path: Path, launch: dict[str, Any]
) -> None:
    first, second = joined(tmp_path, launch)
    first.wait_for_ranks()
    second.process.send_signal(signal.SIGINT)
    status, lines = first.end()
    assert (status, lines[1:]) == (130, ["error: stopped by SIGINT and saved", f"the signal came to host {HERE}"])
    status, lines = second.end()
    assert (status, lines[-1]) == (130, f"error: stopped by SIGINT on all hosts; {THERE}")


@long
def test_a_signal_to_the_first_host_is_told_on_the_other_as_it_is_there(tmp_path: Path, launch: dict[str, Any]) -> None:
    first, second = joined(tmp_path, launch)
    first.wait_for_ranks()
    first.process.send_signal(signal.SIGINT)
    assert first.end()[0] == 130
    status, lines = second.end()
    assert (status, lines[-1]) == (130, f"error: stopped by SIGINT on host {HERE} and saved")


def test_a_first_host_that_has_just_begun_to_listen_is_waited_for_until_it_greets() -> None:
    settings = LaunchSettings(processes=2, hosts=2, rendezvous="127.0.0.1:1")
    agreed = settings.model_dump_json(include={"processes", "hosts", "timeout", "restarts"})
    where = socket.create_server(("127.0.0.1", 0))
    address = Address("127.0.0.1", where.getsockname()[1])
    board = Board(serve(where, 5))
    later = threading.Timer(0.5, board.set, (GREETING, agreed))
    later.start()
    joins = Meeting(settings, address)
    joins.reach(address)
    joins.greet(address)
    assert board.has(GREETING)
    later.join()


def begun(folder: Path, launch: dict[str, Any]) -> tuple[Host, Host]:
    """Return two hosts whose ranks run, and have not come together."""
    for rank in (0, 1):
        (folder / f"wait.{rank}").touch()
    hosts = joined(folder, launch)
    wait_until(lambda: all((folder / f"waiting.{rank}").exists() for rank in (0, 1)))
    return hosts


@long
def test_a_signal_to_the_host_that_joined_ends_ranks_that_have_yet_to_come_together(
    tmp_path: Path, launch: dict[str, Any]
) -> None:
    first, second = begun(tmp_path, launch)
    second.process.send_signal(signal.SIGINT)
    status, lines = first.end()
    assert (status, lines[1:]) == (130, ["error: stopped by SIGINT", f"the signal came to host {HERE}"])
    status, lines = second.end()
    assert (status, lines[-1]) == (130, f"error: stopped by SIGINT on all hosts; {THERE}")


@long
def test_a_signal_to_the_first_host_ends_ranks_that_have_yet_to_come_together(tmp_path: Path, launch: dict[str, Any]) -> None:
    first, second = begun(tmp_path, launch)
    first.process.send_signal(signal.SIGINT)
    status, lines = first.end()
    assert (status, lines[1:]) == (130, ["error: stopped by SIGINT"])
    status, lines = second.end()
    assert (status, lines[-1]) == (130, f"error: stopped by SIGINT on host {HERE}; {THERE}")


def test_a_host_says_that_the_first_went_away_where_ranks_have_yet_to_come_together(
    tmp_path: Path, launch: dict[str, Any]
) -> None:
    first, second = begun(tmp_path, launch)
    first.process.kill()
    first.process.communicate()
    status, lines = second.end()
    went = f"error: {launch['rendezvous']}: the first host, or the link to it, went away; {THERE}"
    assert (status, lines[-1]) == (2, went)


@long
def test_a_host_whose_parent_is_killed_ends_the_training_of_both(tmp_path: Path, launch: dict[str, Any]) -> None:
    first, second = joined(tmp_path, launch)
    ranks = first.wait_for_ranks()
    second.process.kill()
    second.process.communicate()
    status, lines = first.end()
    assert status == 2
    assert lines[-1].startswith(f"error: rank 0 on {HERE}: ")
    assert lines[-1].endswith(f"; no word from {HERE}, which is gone, or the link to it; {GO_ON}")
    wait_until(lambda: not any(map(is_running, ranks.values())))


@long
@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"processes": 4}, "params.yaml: launch.processes: found 4, allowed: 2, as on the first host"),
        ({"timeout": 30.0}, "params.yaml: launch.timeout: found 30.0, allowed: 20.0, as on the first host"),
    ],
)
def test_a_host_with_other_settings_is_refused_while_the_first_waits_on(
    tmp_path: Path, launch: dict[str, Any], change: dict[str, Any], line: str
) -> None:
    first = Host(tmp_path, launch, seconds=0)
    other = Host(tmp_path / "other", launch | change, launch["rendezvous"])
    status, lines = other.end()
    assert (status, lines[-1]) == (2, f"error: {line}")
    second = Host(tmp_path, launch, launch["rendezvous"], seconds=0)
    assert (first.end()[0], second.end()[0]) == (0, 0)


def test_ctrl_c_ends_the_wait_for_other_hosts(tmp_path: Path, launch: dict[str, Any]) -> None:
    first = Host(tmp_path, launch)
    assert first.process.stderr is not None
    first.process.stderr.readline()
    first.process.send_signal(signal.SIGINT)
    assert first.end() == (130, ["error: stopped by SIGINT while it waited for other hosts"])


def test_an_address_that_is_none_of_this_machine_or_taken_is_refused(tmp_path: Path, launch: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, lines = Host(tmp_path, launch | {"rendezvous": address}).end()
    said = "error: params.yaml: launch.rendezvous: found {}, allowed: an address of this machine and a free port ({})"
    assert (status, lines) == (2, [said.format(address, "Address already in use")])
    status, lines = Host(tmp_path, launch | {"rendezvous": f"192.0.2.77:{PORT}"}).end()
    assert (status, lines) == (2, [said.format(f"192.0.2.77:{PORT}", "Cannot assign requested address")])


def greeted(settings: LaunchSettings) -> Meeting:
    """Return the side of a host that has come to the training, and has no seat yet."""
    address = Address.parse(str(settings.rendezvous))
    host = Meeting(settings, address)
    host.reach(address)
    host.greet(address)
    return host


def test_the_place_of_a_host_that_was_killed_while_it_waited_is_anothers(launch: dict[str, Any]) -> None:
    settings = LaunchSettings(**launch | {"processes": 4, "hosts": 4, "timeout": 6.0})
    first, killed, *others = Meeting(settings, None), *(greeted(settings) for _ in range(4))
    killed.take_seat()
    for host in others:
        threading.Thread(target=host.watch, daemon=True).start()
    with ThreadPoolExecutor(5) as pool:
        gathered = pool.submit(first.next_rendezvous)
        for taken in [pool.submit(host.take_seat) for host in others]:
            taken.result(PATIENCE)
        infos = [gathered.result(PATIENCE), *(pool.submit(host.next_rendezvous).result(PATIENCE) for host in others)]
    assert sorted(info.rank for info in infos) == [0, 1, 2, 3]
    with pytest.raises(
        TruefitError, match=r": this host lost its place there, since it was silent for 6 s \(launch.timeout\)"
    ):
        killed.next_rendezvous()


@long
def test_a_host_that_is_killed_while_it_waits_can_be_replaced_and_the_training_ends_well(
    tmp_path: Path, launch: dict[str, Any]
) -> None:
    launch |= {"processes": 4, "hosts": 4}
    first = Host(tmp_path, launch, seconds=0)
    assert first.process.stderr is not None
    assert "3 more" in first.process.stderr.readline()
    killed = Host(tmp_path, launch, launch["rendezvous"], seconds=0)
    assert "2 more" in first.process.stderr.readline()
    killed.process.kill()
    killed.process.communicate()
    others = [Host(tmp_path, launch, launch["rendezvous"], seconds=0) for _ in range(3)]
    assert [host.end()[0] for host in (first, *others)] == [0] * 4
