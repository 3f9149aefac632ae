"""One training on two hosts with their own addresses and names: src/train.py on the first, `truefit join` on the other."""

import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from helpers_hosts import Namespaces, two_hosts
from helpers_launch import PATIENCE, wait_until
from helpers_server import recorded_epochs
from helpers_torture import long
from workspace import Workspace

from truefit.tracking.names import HOSTS_TAG

TRAIN = (sys.executable, "src/train.py", "data/prepared", "results")
RESULTS = ("model.pt", "model.json", "history.csv")
PORT = 29500


@pytest.fixture(scope="module")
def hosts() -> Iterator[Namespaces]:
    """Host a and host b."""
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory, hosts: Namespaces) -> dict[str, Workspace]:
    """A clone on each host, at the same commit with the same table; the results of one process are in `alone` on host a."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "a").mkdir()
    first = Workspace(folder / "a")
    first.set_params(
        generate__rows=4000,
        train__shards=4,
        train__model={"name": "mlp", "hidden": [8], "dropout": 0.2},
        train__batch_size=7,
        train__epochs=6,
        checkpoint={"epochs": None, "seconds": 0.1},
    )
    first.commit()
    first.run("python", "src/generate.py", "data/synthetic.csv")
    first.run("python", "src/prepare.py", "data/prepared")
    shutil.copytree(first.path, folder / "b")
    second = Workspace(folder / "b", copy=False)
    first.run("python", "src/train.py", "data/prepared", "alone")
    launch = {"processes": 2, "hosts": 2, "rendezvous": f"{hosts.addresses['a']}:{PORT}", "timeout": 15.0, "restarts": 0}
    for clone in (first, second):
        clone.set_params(launch=launch)
    return {"a": first, "b": second}


def start(hosts: Namespaces, clones: dict[str, Workspace]) -> list["subprocess.Popen[str]"]:
    """Start the training on host a, and let host b join."""
    address = f"{hosts.addresses['a']}:{PORT}"
    join = (sys.executable, "-c", "from truefit.cli.main import main; main()", "join", address)
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            [*hosts.on(host), *command],
            cwd=clones[host].path,
            env=clones[host].environment | {"PYTHONPATH": "src"},
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for host, command in (("a", TRAIN), ("b", join))
    ]


def end(processes: list["subprocess.Popen[str]"]) -> list[tuple[int, str]]:
    """Return the exit status and the last line on stderr of each."""
    printed = [process.communicate(timeout=PATIENCE)[1].splitlines() for process in processes]
    return [(process.returncode, lines[-1] if lines else "") for process, lines in zip(processes, printed, strict=True)]


@pytest.mark.xdist_group("hosts")
def test_a_training_whose_link_goes_down_ends_on_both_hosts_and_goes_on_to_the_bits_of_one_process(
    hosts: Namespaces, clones: dict[str, Workspace]
) -> None:
    first = clones["a"]
    processes = start(hosts, clones)
    wait_until(
        lambda: (
            any(map(recorded_epochs, first.path.glob(".truefit/runs/*.sqlite")))
            or any(process.poll() is not None for process in processes)
        )
    )
    hosts.set_link("down")
    try:
        (status, line), (status_b, line_b) = end(processes)
    finally:
        hosts.set_link("up")
    assert (status, status_b) == (2, 2), (line, line_b)
    assert line.startswith("error: rank 0 on host-a: lost another process of the training: ")
    assert line.endswith(
        "; no word from host-b, which is gone, or the link to it; `dvc repro` goes on from the last checkpoint"
    )
    assert line_b.startswith("error: rank 1 on host-b: lost another process of the training: ")
    assert line_b.endswith("; `dvc repro` on the first host goes on from the last checkpoint")

    assert [status for status, _ in end(start(hosts, clones))] == [0, 0]
    for name in RESULTS:
        assert (first.path / "results" / name).read_bytes() == (first.path / "alone" / name).read_bytes(), name
    (run, _) = first.runs()
    assert run.data.tags[HOSTS_TAG] == "2"
    assert not any((clones["b"].path / "results" / name).exists() for name in RESULTS)


@pytest.mark.xdist_group("hosts")
@pytest.mark.parametrize("what", ["table", pytest.param("commit", marks=long), pytest.param("code", marks=long)])
def test_a_host_with_something_else_is_refused_by_name(hosts: Namespaces, clones: dict[str, Workspace], what: str) -> None:
    second = Workspace(clones["b"].path.with_name(what), copy=False)
    shutil.copytree(clones["b"].path, second.path)
    if what == "table":
        second.set_params(prepare__split__seed=7)
        second.run("python", "src/prepare.py", "data/prepared")
    elif what == "code":
        second.add_comment("training")
    else:
        second.commit()
    (status, line), (status_b, line_b) = end(start(hosts, {"a": clones["a"], "b": second}))
    assert (status, status_b) == (2, 2), (line, line_b)
    found = f"host host-b: {what}: found "
    assert found in line, line
    assert found in line_b, line_b
