"""Parts that other hosts read: the bytes of one process, whatever becomes of the others, which then join the training."""

import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers_hosts import two_hosts
from helpers_joining import JOIN, free_address, hold, joining, line_with, make_clone, wait_for_help
from helpers_launch import PATIENCE, wait_until
from helpers_parts import prepared, write_csv, write_parquet
from helpers_torture import long
from workspace import Workspace

from truefit.core.hosts import Hosts
from truefit.core.launch import LaunchSettings
from truefit.ingest import part_processes

HOST = socket.gethostname()
SETTINGS: dict[str, Any] = {"missing": {"features": "fill"}, "weight": "w", "split": {"group": "g", "folds": 4}}


@pytest.fixture
def launch(_in_an_empty_folder: None) -> LaunchSettings:
    """Two hosts in a folder with parts."""
    Path("parts").mkdir()
    for number in range(8):
        write_csv(number, gaps=True)
    launch = LaunchSettings(processes=2, hosts=2, rendezvous=free_address(), timeout=5)
    make_clone(Path(), launch)
    return launch


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_a_host_in_the_same_folder_reads_parts_to_the_bytes_of_one_process(
    launch: LaunchSettings, write: Callable[[int, bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("parts")
    Path("parts").mkdir()
    for number in range(8):
        write(number, True)
    alone = prepared("alone", **SETTINGS)
    hold(monkeypatch, part_processes, wait_for_help)
    with joining(launch) as other:
        assert prepared("together", launch, **SETTINGS) == alone
        done = line_with(other, "parts").removeprefix("prepare: ").removesuffix(f" parts done for {launch.address}")
        assert 0 < int(done) <= 8
        assert line_with(other, "") == f"waiting for a training that listens at {launch.address}; for now: Connection refused"
        assert other.poll() is None


def test_nobody_is_waited_for(launch: LaunchSettings) -> None:
    assert prepared("together", launch, **SETTINGS) == prepared("alone", **SETTINGS)


def test_the_parts_of_a_host_that_is_killed_are_read_by_another(
    launch: LaunchSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = list[psutil.Process]()

    def kill_while_it_has_parts(hosts: Hosts) -> None:
        wait_for_help(hosts)
        other.send_signal(signal.SIGSTOP)  # so that it answers nothing
        workers.extend(psutil.Process(other.pid).children())
        threading.Timer(0.5, other.kill).start()

    alone = prepared("alone", **SETTINGS)
    hold(monkeypatch, part_processes, kill_while_it_has_parts)
    with joining(launch) as other:
        assert prepared("together", launch, **SETTINGS) == alone
        assert other.wait() == -signal.SIGKILL
    assert capsys.readouterr().err == f"{HOST}: went away, or the link to it; others do what it had to do\n"
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]


@long  # the timeout, during which nothing is done
def test_the_parts_of_a_host_that_stands_still_are_read_by_another(
    launch: LaunchSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop_while_it_has_parts(hosts: Hosts) -> None:
        wait_for_help(hosts)
        other.send_signal(signal.SIGSTOP)

    alone = prepared("alone", **SETTINGS)
    hold(monkeypatch, part_processes, stop_while_it_has_parts)
    with joining(launch) as other:
        assert prepared("together", launch, **SETTINGS) == alone
    assert capsys.readouterr().err == f"{HOST}: went away, or the link to it; others do what it had to do\n"


def test_what_a_killed_stage_left_for_other_hosts_is_cleared(launch: LaunchSettings) -> None:
    left = Path("together", part_processes.SHARED, "hosts.key")
    left.parent.mkdir(parents=True)
    left.write_text("of another")
    assert prepared("together", launch, **SETTINGS) == prepared("alone", **SETTINGS)


def test_a_host_whose_processes_end_helps_no_more(
    launch: LaunchSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill_workers(hosts: Hosts) -> None:
        wait_for_help(hosts)
        process = psutil.Process(other.pid)
        wait_until(lambda: len(process.children()) == len(process.cpu_affinity()))
        for worker in process.children():
            worker.kill()
        assert line_with(other, "ended") == "a process that did parts was ended by SIGKILL"
        assert line_with(other, "cannot help") == (
            f"{launch.address}: cannot help in prepare there: found no process of this host left; waits for the training"
        )

    alone = prepared("alone", **SETTINGS)
    hold(monkeypatch, part_processes, kill_workers)
    with joining(launch) as other:
        assert prepared("together", launch, **SETTINGS) == alone
    assert capsys.readouterr().err == f"{HOST}: went away, or the link to it; others do what it had to do\n"


def test_a_clone_elsewhere_does_not_help_and_waits_for_the_training(
    launch: LaunchSettings, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def wait_for_its_word(hosts: Hosts) -> None:
        line = line_with(other, "cannot help")
        assert line.startswith(f"{launch.address}: cannot help in prepare there: found no together/.")
        assert line.endswith(
            "/hosts.key here, allowed: the same folder of a file system that both hosts share; waits for the training"
        )
        assert not select.select([hosts], [], [], 1.5)[0]  # in which it has looked once more

    alone = prepared("alone", **SETTINGS)
    elsewhere = tmp_path_factory.mktemp("clone")
    make_clone(elsewhere, launch)
    hold(monkeypatch, part_processes, wait_for_its_word)
    with joining(launch, elsewhere) as other:
        assert prepared("together", launch, **SETTINGS) == alone
        assert other.poll() is None


def test_a_host_that_has_another_file_in_a_part_s_place_does_not_read_it(
    launch: LaunchSettings, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("clone")
    make_clone(elsewhere, launch)
    shutil.copytree("parts", elsewhere / "parts", copy_function=shutil.copyfile)
    Path("together").mkdir()
    (elsewhere / "together").symlink_to(Path("together").absolute())
    alone = prepared("alone", **SETTINGS)
    hold(monkeypatch, part_processes, wait_for_help)
    with joining(launch, elsewhere) as other:
        assert prepared("together", launch, **SETTINGS) == alone
        assert line_with(other, "parts/").endswith(".csv: another file than on the host that asks, or none")


# Stage prepare, which says when another host helps, and goes on when it is told so.
PREPARE = """
import select, sys
sys.path.insert(0, "src")
import prepare
from truefit.core import errors
from truefit.ingest import part_processes
real = part_processes.hosts_for

def held(*arguments):
    hosts = real(*arguments)
    select.select([hosts], [], [])
    print("helped", flush=True)
    sys.stdin.readline()
    return hosts

part_processes.hosts_for = held
sys.exit(errors.run(prepare.main))
"""


@pytest.fixture
def clone(tmp_path: Path) -> Workspace:
    """A clone with parts, in which prepare gives the folder `alone`, and which is then set for two hosts."""
    clone = Workspace(tmp_path)
    clone.set_params(prepare__csv="parts", train__shards=2, train__epochs=3)
    (tmp_path / "parts").mkdir()
    for number in range(8):
        x = np.random.default_rng(number).normal(size=(500, 2))
        np.savetxt(tmp_path / f"parts/{number}.csv", np.c_[x, x @ [1, 2]], "%.6f", ",", header="a,b,y", comments="")
    clone.commit()
    clone.run("python", "src/prepare.py", "alone")
    return clone


def set_hosts(clone: Workspace, address: str) -> None:
    clone.set_params(launch={"processes": 2, "hosts": 2, "rendezvous": address, "timeout": 5.0, "restarts": 0})


def start(clone: Workspace, *command: str) -> "subprocess.Popen[str]":
    pipe, environment = subprocess.PIPE, clone.environment | {"PYTHONPATH": "src"}
    return subprocess.Popen(command, cwd=clone.path, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def require_same_table(clone: Workspace) -> None:
    assert {path.name: path.read_bytes() for path in (clone.path / "data/prepared").iterdir()} == {
        path.name: path.read_bytes() for path in (clone.path / "alone").iterdir()
    }


@long
def test_a_host_that_has_helped_takes_part_in_the_training(clone: Workspace) -> None:
    address = free_address()
    set_hosts(clone, address)
    with start(clone, *JOIN, address) as other:
        clone.run(sys.executable, "-c", PREPARE, "data/prepared")
        require_same_table(clone)
        clone.run("python", "src/train.py", "data/prepared", "results")
        printed = other.communicate(timeout=PATIENCE)[1]
    assert other.returncode == 0, printed
    assert f" parts done for {address}\n" in printed


@long
@pytest.mark.xdist_group("hosts")
def test_a_link_that_is_cut_costs_nothing_but_time(clone: Workspace) -> None:
    with two_hosts() as hosts:
        address = f"{hosts.addresses['a']}:29500"
        set_hosts(clone, address)
        with (
            start(clone, *hosts.on("b"), *JOIN, address) as other,
            start(clone, *hosts.on("a"), sys.executable, "-c", PREPARE, "data/prepared") as first,
        ):
            assert first.stdin is not None
            assert first.stdout is not None
            assert first.stdout.readline() == "helped\n"
            process = psutil.Process(other.pid)
            wait_until(lambda: len(process.children()) == len(process.cpu_affinity()))
            other.send_signal(signal.SIGSTOP)  # so that it has its parts, and has not answered
            first.stdin.write("\n")
            first.stdin.flush()
            time.sleep(1)
            hosts.set_link("down")
            printed = first.communicate(timeout=PATIENCE)[1]
            hosts.set_link("up")
            other.send_signal(signal.SIGCONT)
            assert line_with(other, "prepare: ").endswith(f" parts done for {address}")
            assert line_with(other, "").startswith(f"waiting for a training that listens at {address}; ")
            other.kill()
    assert (first.returncode, printed) == (0, "host-b: went away, or the link to it; others do what it had to do\n")
    require_same_table(clone)
