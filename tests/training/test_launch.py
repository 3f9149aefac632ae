"""Ranks of one host: how they start, how they end, and that none is left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers_launch import Host, is_running, wait_until
from helpers_torture import long
from pydantic import ValidationError

from truefit.core.addresses import Address, listener
from truefit.core.config import Params
from truefit.core.errors import SettingsError, TruefitError
from truefit.core.launch import LaunchSettings

TWO = {"processes": 2, "timeout": 20.0}
GO_ON = "`dvc repro` goes on from the last checkpoint"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Host]:
    """Two ranks that gather for a minute, unless they are ended."""
    host = Host(tmp_path, TWO)
    yield host
    host.process.kill()
    host.process.communicate()


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"processes": 3}, "processes: found 3, allowed: a power of two"),
        ({"processes": 0}, "Input should be greater than or equal to 1"),
        ({"processes": 2, "hosts": 4}, "processes: found 2, allowed: a multiple of launch.hosts, 4"),
        ({"processes": 2, "hosts": 2}, "rendezvous: found null, allowed: HOST:PORT where the first of 2 hosts listens"),
        ({"processes": 4, "hosts": 3}, "hosts: found 3, allowed: a power of two, since processes is one"),
        ({"processes": 2, "rendezvous": "a:1"}, "rendezvous: found 'a:1', allowed: null with hosts 1"),
        ({"restarts": 1}, "restarts: found 1, allowed: 0 with processes 1"),
        ({"timeout": 1.0}, "Input should be greater than or equal to 5"),
    ],
)
def test_settings_that_no_launch_can_have_are_refused(section: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LaunchSettings(**section)
    assert caught.value.errors()[0]["msg"].startswith(line)


@pytest.mark.parametrize("found", ["'10.0.0.1'", "'a:70000'", "{'a': 29500}", "29500"])
def test_a_rendezvous_that_is_no_address_is_refused_with_how_it_is_written(tmp_path: Path, found: str) -> None:
    (tmp_path / "params.yaml").write_text(f"launch: {{rendezvous: {found}}}\n")
    with pytest.raises(SettingsError) as caught:
        Params(tmp_path / "params.yaml").section("launch", LaunchSettings)
    assert str(caught.value).endswith(f"launch.rendezvous: found {found}, allowed: HOST:PORT, such as 10.0.0.1:29500")


@long
def test_ranks_that_end_well_print_nothing_of_the_launcher(tmp_path: Path) -> None:
    assert Host(tmp_path, TWO, seconds=0).end() == (0, [])


STOPS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=long), pytest.param(signal.SIGHUP, marks=long)]


@pytest.mark.parametrize("number", STOPS)
def test_ranks_of_one_host_listen_on_loopback_alone_and_a_signal_to_their_parent_stops_rank_0(
    two: Host, number: signal.Signals
) -> None:
    ranks = two.wait_for_ranks()
    pids = [two.process.pid, *ranks.values()]
    listening = [each.laddr.ip for pid in pids for each in psutil.Process(pid).net_connections() if each.status == "LISTEN"]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}
    two.process.send_signal(number)
    passed = signal.SIGTERM if number == signal.SIGHUP else number
    assert two.end() == (128 + passed, [f"error: stopped by {passed.name} and saved"])
    assert not any(map(is_running, ranks.values()))


@long  # of one process: tests/core/test_signals.py
def test_ctrl_c_while_ranks_import_is_told_in_one_line(two: Host) -> None:
    parent = psutil.Process(two.process.pid)
    wait_until(lambda: len(parent.children()) == 2)
    ranks = [rank.pid for rank in parent.children()]
    two.process.send_signal(signal.SIGINT)
    assert two.end() == (130, ["error: stopped by SIGINT"])
    assert not any(map(is_running, ranks))


# Of rank 1, on two hosts, in test_hosts.py; of rank 0, while the other hangs, below.
@long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_with_one_line(two: Host, rank: int) -> None:
    ranks = two.wait_for_ranks()
    os.kill(ranks[rank], signal.SIGKILL)
    assert two.end() == (2, [f"error: rank {rank} was killed by SIGKILL (is the memory enough?); {GO_ON}"])
    assert not any(map(is_running, ranks.values()))


def test_ranks_end_with_a_parent_that_is_killed(two: Host) -> None:
    ranks = two.wait_for_ranks()
    two.process.kill()
    wait_until(lambda: not any(map(is_running, ranks.values())))


def test_a_rank_that_hangs_when_another_has_gone_is_killed_and_not_blamed(two: Host) -> None:
    ranks = two.wait_for_ranks()
    os.kill(ranks[1], signal.SIGSTOP)
    os.kill(ranks[0], signal.SIGKILL)
    assert two.end() == (2, [f"error: rank 0 was killed by SIGKILL (is the memory enough?); {GO_ON}"])
    assert not any(map(is_running, ranks.values()))


@long
@pytest.mark.parametrize(("rank", "lines"), [(0, ["error: no such column"]), (1, ["error: rank 1: no such column"])])
def test_an_error_is_told_once_whichever_rank_has_it(two: Host, rank: int, lines: list[str]) -> None:
    ranks = two.wait_for_ranks()
    (two.folder / f"fail.{rank}").write_text(json.dumps(["no such column", 2]))
    assert two.end() == (2, lines)
    assert not any(map(is_running, ranks.values()))


def test_restarts_start_the_ranks_again_after_one_was_lost_but_not_after_an_error_of_its_own(tmp_path: Path) -> None:
    host = Host(tmp_path, TWO | {"restarts": 2})
    os.kill(host.wait_for_ranks()[1], signal.SIGKILL)
    host.wait_for_ranks(attempt=1)
    (host.folder / "fail.1").write_text(json.dumps(["no such column", 2]))
    killed = "rank 1 was killed by SIGKILL (is the memory enough?)"
    again = f"warning: {killed}; going on from the last checkpoint, restart 1 of 2"
    assert host.end() == (2, [again, "error: rank 1: no such column"])


def test_a_rank_that_is_killed_while_rank_0_saves_changes_nothing(tmp_path: Path) -> None:
    kept = [tmp_path / f"save.{rank}" for rank in (0, 1)]
    for file in kept:
        file.touch()
    host = Host(tmp_path, TWO, seconds=0)
    ranks = host.wait_for_ranks()
    wait_until(lambda: all((tmp_path / f"saving.{rank}").exists() for rank in (0, 1)))
    os.kill(ranks[1], signal.SIGKILL)
    kept[0].unlink()
    assert host.end() == (0, [])


@long
def test_a_signal_ends_restarts(tmp_path: Path) -> None:
    host = Host(tmp_path, TWO | {"restarts": 2})
    host.wait_for_ranks()
    host.process.terminate()
    assert host.end() == (143, ["error: stopped by SIGTERM and saved"])


def test_a_rank_does_not_import_the_launcher() -> None:
    code = "import sys, truefit.training.launch; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("host", ["0", "0.0.0.0", "::", "::0"])
def test_an_address_that_stands_for_all_of_a_machine_is_refused_however_it_is_written(host: str) -> None:
    found = (
        r"launch.rendezvous: found .*, which is every address of this machine, allowed: the one by which the other hosts .*"
    )
    with pytest.raises(TruefitError, match=f"^params.yaml: {found}$"):
        listener(Address(host, 29_500))
