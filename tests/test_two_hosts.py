"""One training on two hosts with their own addresses and names: `dvc repro` on the first, `truefit join` on the other."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from helpers_hosts import Namespaces, two_hosts
from helpers_launch import PATIENCE, wait_until
from helpers_server import recorded_epochs
from helpers_stages import Stages
from helpers_torture import long
from ruamel.yaml import YAML
from workspace import Workspace

from truefit.tracking.names import HOSTS_TAG

TABLE = "data/prepared"
REPRO = ("dvc", "repro")
TRAIN = ("python", "src/train.py", TABLE, "results")
DVC_FAILED = 255
RESULTS = ("history.csv", "model.json", "model.pt")
PORT = 29500
# What a start takes on a busy machine: ranks come together within it, or are lost.
TIMEOUT = 8.0


@pytest.fixture(scope="module")
def hosts() -> Iterator[Namespaces]:
    """Host a and host b."""
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory, hosts: Namespaces, stages: Stages) -> dict[str, Workspace]:
    """A clone on each host, at the same commit with the same table; the results of one process are in `alone` on host a."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "a").mkdir()
    first = Workspace(folder / "a")
    first.set_params(
        generate__rows=1500,
        train__shards=4,
        train__model={"name": "mlp", "hidden": [8], "dropout": 0.2},
        train__batch_size=7,
        train__epochs=6,
        checkpoint={"epochs": None, "seconds": 0.1},
    )
    for stage, *places in (("generate", "data/synthetic.csv"), ("prepare", TABLE), ("train", TABLE, "alone")):
        done = stages.run(first.path, stage, *places)
        assert done.status == 0, done.line
    first.run("dvc", "commit", "--force", "generate", "prepare")
    first.commit()
    shutil.copytree(first.path, folder / "b")
    second = Workspace(folder / "b", copy=False)
    launch = {
        "processes": 2,
        "hosts": 2,
        "rendezvous": f"{hosts.addresses['a']}:{PORT}",
        "timeout": TIMEOUT,
        "restarts": 0,
    }
    for clone in (first, second):
        clone.set_params(launch=launch)
    return {"a": first, "b": second}


def start(hosts: Namespaces, clones: dict[str, Workspace], command: Sequence[str] = REPRO) -> list["subprocess.Popen[str]"]:
    """Start the training on host a by the command, and let host b join."""
    address = f"{hosts.addresses['a']}:{PORT}"
    join = (sys.executable, "-c", "from truefit.cli.main import main; main()", "join", address)
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            [*hosts.on(host), *done],
            cwd=clones[host].path,
            env=clones[host].environment | {"PYTHONPATH": "src"},
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for host, done in (("a", command), ("b", join))
    ]


def end(processes: list["subprocess.Popen[str]"]) -> list[tuple[int, str]]:
    """Return the exit status of each, and the error that its training printed last, if any."""
    printed = [process.communicate(timeout=PATIENCE)[1].splitlines() for process in processes]
    print(*map("\n".join, printed), sep="\n---\n")  # for whoever looks at a failure
    errors = [[line for line in lines if line.startswith("error: ")] for lines in printed]
    return [(process.returncode, lines[-1] if lines else "") for process, lines in zip(processes, errors, strict=True)]


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
    assert (status, status_b) == (DVC_FAILED, 2), (line, line_b)
    assert line.startswith("error: rank 0 on host-a: lost another process of the training: ")
    assert line.endswith(
        "; no word from host-b, which is gone, or the link to it; `dvc repro` goes on from the last checkpoint"
    )
    assert line_b.startswith("error: rank 1 on host-b: lost another process of the training: ")
    assert line_b.endswith("; `dvc repro` on the first host goes on from the last checkpoint")

    assert end(start(hosts, clones)) == [(0, ""), (0, "")]
    locked = YAML(typ="safe").load(first.path / "dvc.lock")["stages"]["train"]["outs"]
    assert {out["path"]: out["md5"] for out in locked} == {
        f"results/{name}": hashlib.md5((first.path / "alone" / name).read_bytes()).hexdigest() for name in RESULTS
    }
    assert first.run("dvc", "repro").stdout.count("didn't change, skipping") == 4
    (run, _) = first.runs()
    assert run.data.tags[HOSTS_TAG] == "2"
    assert run.data.metrics["test_mse"] == first.json("results/metrics.json")["test"]["mse"]
    assert not any((clones["b"].path / "results" / name).exists() for name in RESULTS)


@pytest.mark.xdist_group("hosts")
@pytest.mark.parametrize("what", ["table", pytest.param("commit", marks=long), pytest.param("code", marks=long)])
def test_a_host_with_something_else_is_refused_by_name(
    hosts: Namespaces, clones: dict[str, Workspace], stages: Stages, what: str
) -> None:
    second = Workspace(clones["b"].path.with_name(what), copy=False)
    shutil.copytree(clones["b"].path, second.path)
    if what == "table":
        second.set_params(prepare__split__seed=7)
        assert stages.run(second.path, "prepare", TABLE).status == 0
    elif what == "code":
        second.add_comment("training")
    else:
        second.commit()
    (status, line), (status_b, line_b) = end(start(hosts, {"a": clones["a"], "b": second}, TRAIN))
    assert (status, status_b) == (2, 2), (line, line_b)
    found = f"host host-b: {what}: found "
    assert found in line, line
    assert found in line_b, line_b
