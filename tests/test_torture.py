"""Kills real trainings, and real `dvc repro`, with SIGKILL at random moments, and compares what they end with, bit for bit.

A few trainings here; `make torture` sets TRUEFIT_TORTURE=1 for all. The seed is printed, and TRUEFIT_SEED sets it.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers_server import recorded_epochs
from helpers_stages import Process, Stages
from helpers_torture import SEED, TORTURE
from mlflow.entities import Run
from workspace import Workspace

LOSSES = ("train_loss", "validation_loss", "learning_rate", "epoch_seconds", "train_rows_per_second")

# Every engine, model, optimizer, schedule and shuffle, with and without early stopping, dropout, clipping and scaling.
TRAININGS: dict[str, dict[str, Any]] = {
    "numpy": {
        "engine": "numpy",
        "scale": {"features": "none", "target": "none"},
        "batch_size": 1,
        "schedule": {"name": "cosine", "min_lr": 0.001},
        "epochs": 12,
    },
    "mlp": {
        "model": {"name": "mlp", "hidden": [16], "dropout": 0.2},
        "optimizer": {"name": "adam", "lr": 0.01},
        "schedule": {"name": "plateau", "patience": 0},
        "shuffle": "block",
        "batch_size": 2,
        "epochs": 3,
    },
    "autograd": {
        "engine": "autograd",
        "batch_size": 3,
        "loss": {"reduction": "sum"},
        "optimizer": {"lr": 0.01},
        "schedule": {"name": "step", "step_size": 2, "gamma": 0.5},
        "epochs": 5,
    },
    "momentum": {
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.001},
        "schedule": {"name": "plateau", "patience": 0, "factor": 0.5},
        "early_stopping": {"patience": 2, "min_delta": 1e-5},
        "clip_norm": 1.0,
        "batch_size": 2,
        "epochs": 8,
    },
    "adamw": {
        "model": {"name": "mlp", "hidden": [8, 8], "activation": "tanh"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "scale": {"features": "standard", "target": "none"},
        "schedule": {"name": "cosine"},
        "loss": {"name": "huber"},
        "early_stopping": {"patience": 3},
        "batch_size": 4,
        "epochs": 8,
    },
    "adam": {
        "optimizer": {"name": "adam", "lr": 0.01},
        "schedule": {"name": "step", "step_size": 3},
        "loss": {"name": "l1"},
        "shuffle": "block",
        "batch_size": 2,
        "epochs": 6,
    },
    "compiled": {
        "engine": "compiled",
        "compile": {"batches": 4},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        "schedule": {"name": "cosine"},
        "batch_size": 2,
        "epochs": 60,
    },
    "all": {"batch_size": "all", "optimizer": {"lr": 0.3}, "schedule": {"name": "constant"}, "epochs": 3000},
}
TRAIN = ("train", "data/prepared", "results")
SCRIPT = ("python", "src/train.py", *TRAIN[1:])  # the same with the clone's own code, or in several processes

KILLS = dict.fromkeys(TRAININGS, 4) if TORTURE else {"numpy": 1}  # the fastest


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, stages: Stages) -> Workspace:
    """A clone with a table of 8,000 training rows, so that an epoch of small batches is several chunks long."""
    workspace = Workspace(tmp_path_factory.mktemp("clone"))
    workspace.set_params(generate__rows=10_000)
    for stage, place in (("generate", "data/synthetic.csv"), ("prepare", "data/prepared")):
        assert stages.run(workspace.path, stage, place).status == 0
    return workspace


def start(workspace: Workspace, *command: str) -> subprocess.Popen[str]:
    """Start a command as the leader of a group of processes, so that all of it can be killed."""
    pipe = subprocess.PIPE
    environment = workspace.environment
    return subprocess.Popen(
        command, cwd=workspace.path, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def kill(process: Process) -> bool:
    """Kill the whole group; return whether it was still running."""
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def configure(workspace: Workspace, name: str, settings: dict[str, Any], **others: Any) -> None:
    """Put these settings of train, and no others, into params.yaml, with an experiment of that name."""
    (workspace.path / "params.yaml").write_text(workspace.run("git", "show", "HEAD:params.yaml").stdout)
    train = {f"train__{key}": value for key, value in settings.items()}
    workspace.set_params(**train, **others, track__experiment=name, track__log_model=TORTURE)  # which takes a second


def until_begun(workspace: Workspace, process: Process, metrics: bool = False) -> None:
    """Wait until the training has its run and so begins its steps, or has metrics of an epoch, or has ended."""
    while process.poll() is None:
        journals = [*workspace.path.glob(".truefit/runs/*.sqlite")]
        if any(map(recorded_epochs, journals)) if metrics else journals:
            return
        time.sleep(0.01)


def until_saved(workspace: Workspace, process: subprocess.Popen[str]) -> None:
    """Wait until the training has made a checkpoint of its own, or has ended."""
    begun = time.time()
    while process.poll() is None:
        with suppress(FileNotFoundError):  # the one before the last is removed
            if any(path.stat().st_mtime > begun for path in workspace.path.glob(".truefit/checkpoints/*/*.checkpoint")):
                return
        time.sleep(0.01)


def train(workspace: Workspace, stages: Stages) -> None:
    """Train undisturbed, which says nothing but how far it is."""
    done = stages.run(workspace.path, *TRAIN)
    assert (done.status, re.sub(r"^epoch .*\n", "", done.line, flags=re.MULTILINE)) == (0, "")


def results(workspace: Workspace) -> dict[str, bytes]:
    return {name: (workspace.path / "results" / name).read_bytes() for name in ("model.pt", "model.json", "history.csv")}


def histories(workspace: Workspace, run: Run) -> dict[str, list[tuple[int, float]]]:
    found = {name: workspace.client.get_metric_history(run.info.run_id, name) for name in LOSSES}
    return {name: sorted((metric.step, metric.value) for metric in metrics) for name, metrics in found.items()}


def check_run(workspace: Workspace, run: Run, reference: Run) -> None:
    """Check that a run is whole, as `check_losses` does, and has the settings and the states of the reference."""
    check_losses(workspace, run, reference)
    assert run.data.params == reference.data.params
    for artifact in ("state_dict/best.pt", "state_dict/final.pt", "record/params.yaml"):
        mine, other = (Path(workspace.client.download_artifacts(one.info.run_id, artifact)) for one in (run, reference))
        assert mine.read_bytes() == other.read_bytes()


def check_losses(workspace: Workspace, run: Run, reference: Run) -> None:
    """Check that a run is finished, with each metric of each epoch once, and the losses and the model of the reference."""
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags
    assert run.data.tags["state_dict.sha256"] == reference.data.tags["state_dict.sha256"]
    ours, theirs = histories(workspace, run), histories(workspace, reference)
    for name in LOSSES:
        assert [step for step, _ in ours[name]] == [step for step, _ in theirs[name]], name
    for name in ("train_loss", "validation_loss", "learning_rate"):
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize("name", KILLS)
@pytest.mark.xdist_group("torture")
def test_killed_training_ends_with_the_bits_of_one_that_was_not(prepared: Workspace, name: str, stages: Stages) -> None:
    generator = random.Random(f"{SEED} {name}")
    print(f"seed {SEED}")
    workspace = prepared
    configure(workspace, name, TRAININGS[name], checkpoint={"epochs": 2, "seconds": 0.05})
    begun = time.monotonic()
    train(workspace, stages)
    duration = time.monotonic() - begun
    expected = results(workspace)
    shutil.rmtree(workspace.path / "results")
    (reference,) = workspace.runs(name)

    resumed = 0
    for _ in range(KILLS[name]):
        process = stages.start(workspace.path, *TRAIN)
        until_begun(workspace, process)
        moment = generator.uniform(0, 0.7 * duration / (1 + resumed))
        time.sleep(moment)
        kill(process)
        # One killed when its run had ended leaves no journal to go on with, also where the process was not quite over.
        resumed += any((workspace.path / ".truefit/runs").iterdir())
    train(workspace, stages)
    assert results(workspace) == expected
    runs = [run for run in workspace.runs(name) if run.info.run_id != reference.info.run_id]
    for run in runs:
        check_run(workspace, run, reference)
    # What began after such an end is a training of its own.
    assert len(runs) == 1 + KILLS[name] - resumed
    assert not list((workspace.path / ".truefit/checkpoints").iterdir())
    assert not list((workspace.path / ".truefit/runs").iterdir())


@pytest.mark.xdist_group("torture")
def test_a_training_whose_ranks_are_killed_leaves_no_process_and_ends_with_the_bits_of_one(
    prepared: Workspace, stages: Stages
) -> None:
    """Kills ranks, or their parent, of trainings in 2 and 4 processes, going on with another number, at last one."""
    generator, workspace, name = random.Random(f"{SEED} ranks"), prepared, "ranks"
    print(f"seed {SEED}")
    settings = TRAININGS["mlp"] | {"shards": 4, "batch_size": 5}
    often = {"epochs": None, "seconds": 0.05}
    configure(workspace, name, settings, checkpoint=often)
    train(workspace, stages)
    expected = results(workspace)
    (reference,) = workspace.runs(name)

    for _ in range(20 if TORTURE else 1):
        processes = generator.choice((2, 4) if TORTURE else (2,))
        configure(workspace, name, settings, checkpoint=often, launch={"processes": processes})
        parent = start(workspace, *SCRIPT)
        until_saved(workspace, parent)
        time.sleep(generator.uniform(0, 1))
        begun = psutil.Process(parent.pid).children(recursive=True) if parent.poll() is None else []
        with suppress(psutil.NoSuchProcess):  # it was over before
            ranks = [process for process in begun if "src/train.py" in process.cmdline()]
            # That of the parent alone is in test_launch.py, in a short form too.
            generator.choice([*ranks, *([psutil.Process(parent.pid)] if TORTURE else [])]).kill()
        _, complaint = parent.communicate()
        assert not psutil.wait_procs(begun, timeout=60)[1]
        told = [line for line in complaint.splitlines() if not line.startswith("epoch ")]  # of 10 s or more
        killed = r"error: rank \d was killed by SIGKILL .*`dvc repro` goes on from the last checkpoint"
        assert len(told) == (parent.returncode == 2), complaint
        assert all(re.fullmatch(killed, line) for line in told), complaint

    configure(workspace, name, settings)
    train(workspace, stages)
    assert results(workspace) == expected
    for run in workspace.runs(name)[:-1]:
        check_losses(workspace, run, reference)
    assert not list((workspace.path / ".truefit/checkpoints").iterdir())
    assert not list((workspace.path / ".truefit/runs").iterdir())


@pytest.mark.xdist_group("torture")
def test_training_killed_between_its_last_epoch_and_its_stages_end_is_one_run(prepared: Workspace, stages: Stages) -> None:
    """Fault 7: wherever the stage is killed, it is executed again, as DVC does, and goes on with the run that is there."""
    generator, workspace = random.Random(f"{SEED} end"), prepared
    print(f"seed {SEED}")
    settings = {"engine": "numpy", "batch_size": 50, "epochs": 4}
    configure(workspace, "end", settings, checkpoint={"epochs": 3, "seconds": None})

    def train_and_kill(seconds: float | None = None) -> tuple[int, float]:
        """Kill a training so many seconds after its last epoch; return its status, and the seconds for which it lived then."""
        process = stages.start(workspace.path, *TRAIN)
        while process.poll() is None and 4 not in map(recorded_epochs, workspace.path.glob(".truefit/runs/*.sqlite")):
            time.sleep(0.002)
        begun = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        kill(process)
        assert process.returncode is not None
        return process.returncode, time.monotonic() - begun

    status, duration = train_and_kill()
    assert status == 0
    expected, (reference,) = results(workspace), workspace.runs("end")
    known = {reference.info.run_id}
    for _ in range(50 if TORTURE else 1):
        status, _ = train_and_kill(generator.uniform(0, duration))
        if status:
            train(workspace, stages)
        assert results(workspace) == expected
        (run,) = (run for run in workspace.runs("end") if run.info.run_id not in known)
        check_run(workspace, run, reference)
        known.add(run.info.run_id)
    assert not list((workspace.path / ".truefit/checkpoints").iterdir())
    assert not list((workspace.path / ".truefit/runs").iterdir())


STOPS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "status"), STOPS if TORTURE else STOPS[:1])
@pytest.mark.xdist_group("torture")
def test_stopped_training_saves_where_it_is_and_goes_on_in_the_same_run_unless_what_decides_numbers_has_changed(
    prepared: Workspace, stages: Stages, number: signal.Signals, status: int
) -> None:
    workspace, name = prepared, number.name
    configure(workspace, name, TRAININGS["numpy"], checkpoint={"epochs": None, "seconds": None})
    process = stages.start(workspace.path, *TRAIN)
    until_begun(workspace, process, metrics=True)
    process.send_signal(number)
    _, complaint = process.communicate()
    assert process.returncode == status
    assert re.fullmatch(rf"error: stopped by {name} after \d+ of 12 epochs; the next run goes on from there\n", complaint), (
        complaint
    )
    (run,) = workspace.runs(name)
    assert run.info.status == "KILLED"
    assert f"error: {run.data.tags['failure']}\n" == complaint
    done_epochs = int(complaint.split()[5])
    assert len(list(workspace.path.glob(".truefit/checkpoints/*/*.checkpoint"))) == 1

    workspace.add_comment("training")
    workspace.run(*SCRIPT)
    workspace.run("git", "checkout", "--quiet", "HEAD", "--", "src")
    anew, run = workspace.runs(name)
    assert (anew.info.status, run.info.status) == ("FINISHED", "KILLED")
    expected = results(workspace)

    workspace.add_comment("tracking", "rerun", "cli")
    workspace.run(*SCRIPT)
    workspace.run("git", "checkout", "--quiet", "HEAD", "--", "src")
    resumed = workspace.client.get_run(run.info.run_id)
    assert len(workspace.runs(name)) == 2
    assert results(workspace) == expected
    assert resumed.info.status == "FINISHED"
    assert "failure" not in resumed.data.tags
    for one in (anew, resumed):
        assert [step for step, _ in histories(workspace, one)["train_loss"]] == list(range(1, 13))
    assert done_epochs < 12


@pytest.mark.xdist_group("torture")
def test_of_two_trainings_with_the_same_fingerprint_the_second_says_why_it_ends(prepared: Workspace, stages: Stages) -> None:
    workspace = prepared
    configure(workspace, "two", TRAININGS["numpy"])
    first = stages.start(workspace.path, *TRAIN)
    until_begun(workspace, first)
    first.send_signal(signal.SIGSTOP)
    second = stages.run(workspace.path, *TRAIN)
    first.send_signal(signal.SIGCONT)
    assert second.status == 2
    assert second.line.endswith("a training with the same settings, table and code is running; wait until it has ended\n")
    assert second.line.count("\n") == 1
    assert (first.communicate()[1], first.returncode) == ("", 0)
    (run,) = workspace.runs("two")
    assert run.info.status == "FINISHED"


@pytest.fixture(scope="module")
def repro(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path, float]:
    """A clone, a copy of it in which `dvc repro` was not disturbed, and the seconds that this took."""
    folder = tmp_path_factory.mktemp("repro")
    (folder / "fresh").mkdir()
    fresh = Workspace(folder / "fresh")
    fresh.set_params(generate__rows=50_000, train__epochs=3, checkpoint__seconds=0.1)
    fresh.commit()
    shutil.copytree(fresh.path, folder / "reference")
    started = time.monotonic()
    Workspace(folder / "reference", copy=False).run("dvc", "repro")
    return fresh, folder / "reference", time.monotonic() - started


@pytest.mark.skipif(not TORTURE, reason="half a minute long, and held by DVC's own lock: `make torture`")
@pytest.mark.xdist_group("repro")
def test_two_repros_at_once_leave_what_one_does(repro: tuple[Workspace, Path, float], tmp_path: Path) -> None:
    fresh, reference, _ = repro
    shutil.copytree(fresh.path, tmp_path, dirs_exist_ok=True)
    workspace = Workspace(tmp_path, copy=False)
    both = [start(workspace, "dvc", "repro") for _ in range(2)]
    complaints = [process.communicate()[1] for process in both]
    assert 0 in [process.returncode for process in both], complaints
    for process, complaint in zip(both, complaints, strict=True):
        assert process.returncode == 0 or "lock" in complaint, complaint
    workspace.run("dvc", "repro")
    workspace.run("dvc", "status", "--quiet")
    assert (tmp_path / "dvc.lock").read_bytes() == (reference / "dvc.lock").read_bytes()
    assert {run.info.status for run in workspace.runs()} == {"FINISHED"}


def drop_torn_lock(workspace: Workspace) -> None:
    """Do what docs/resilience.md says of DVC itself killed while it wrote its list of locks, which it then cannot read."""
    lock = workspace.path / ".dvc/tmp/rwlock"
    if lock.exists() and not lock.read_bytes():
        lock.unlink()


@pytest.mark.skipif(not TORTURE, reason="minutes long: `make torture`; a kill in stage train is in test_pipeline.py")
@pytest.mark.parametrize("number", range(4))
@pytest.mark.xdist_group("repro")
def test_killed_pipeline_ends_with_the_bits_of_one_that_was_not(
    repro: tuple[Workspace, Path, float], tmp_path: Path, number: int
) -> None:
    """Kills `dvc repro` with all its stages, wherever it is: in generate, prepare, train, evaluate, or between them."""
    generator = random.Random(f"{SEED} pipeline {number}")
    print(f"seed {SEED}")
    fresh, reference, duration = repro
    workspace = Workspace(tmp_path / "clone", copy=False)
    shutil.copytree(fresh.path, workspace.path)
    kills = 0
    while kills < 6:
        process = start(workspace, "dvc", "repro")
        time.sleep(generator.uniform(0, 0.8 * duration))
        if kill(process):
            kills += 1
            drop_torn_lock(workspace)
        else:  # it was faster than the reference, on a machine that others use: once more, from the start
            duration *= 0.8
            shutil.rmtree(workspace.path)
            shutil.copytree(fresh.path, workspace.path)
    workspace.run("dvc", "repro")
    for file in ("dvc.lock", "results/metrics.json", "results/history.csv", "results/model.pt", "results/predictions.csv"):
        assert (workspace.path / file).read_bytes() == (reference / file).read_bytes(), file
    assert not list(workspace.path.glob("**/.*.tmp"))
    assert not list((workspace.path / ".truefit/runs").iterdir())
    runs = workspace.runs()
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert "test_mse" in runs[0].data.metrics
    workspace.run("dvc", "status", "--quiet")
