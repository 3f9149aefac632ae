"""What DVC, MLflow and four processes cost: the default pipeline against one plain script, and logging against none.

The default `dvc repro` in a fresh clone against benchmarks/plain_script.py in an empty folder; a `dvc repro` with nothing to
do against a bare `dvc status`; and a training of many epochs whose losses go to a store in the same machine against one that
logs nothing. From the time with logging that of opening and closing a store is taken off, which it takes without a training.

Two trainings one after the other may differ by more than logging may cost, so that is also counted inside one: the seconds
of the calls that log, the CPU seconds of the thread that sends, which the training does not get, and those of opening and
closing. Both figures have the same bound.

Usage: python benchmarks/pipeline.py [--rounds N] [--idle-rounds N] [--epochs N]
"""

import gc
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import ROOT, Figure, arguments, figure, in_own_process, make_table, over, save, take_turns, timed

from truefit.core import errors
from truefit.data.dataset import open_verified
from truefit.tracking.provenance import Origin
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.store import Store
from truefit.training.device import configure
from truefit.training.loop import train
from truefit.training.progress import Epoch
from truefit.training.settings import TrainSettings

sys.path.insert(0, str(ROOT / "tests"))

from workspace import Workspace

SCRIPT = ROOT / "benchmarks/plain_script.py"


def fresh_repro(folder: Path) -> float:
    """Return the seconds of the default pipeline in a new clone."""
    with tempfile.TemporaryDirectory(dir=folder) as clone:
        workspace = Workspace(Path(clone))
        return timed(lambda: workspace.run("dvc", "repro"))()


def plain_script(folder: Path, environment: dict[str, str]) -> float:
    """Return the seconds of the plain script in an empty folder."""
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        command = [sys.executable, str(SCRIPT)]
        return timed(lambda: subprocess.run(command, cwd=empty, env=environment, check=True, capture_output=True))()


def commands(folder: Path, rounds: int, idle_rounds: int) -> Iterator[Figure]:
    """Compare whole commands."""
    (folder / "clone").mkdir()
    workspace = Workspace(folder / "clone")
    turns = {"repro": lambda: fresh_repro(folder), "script": lambda: plain_script(folder, workspace.environment)}
    seconds = take_turns(turns, rounds)
    yield figure("pipeline", "default dvc repro, fresh clone", "s", seconds["repro"])
    yield figure("pipeline", "one plain script that does the same", "s", seconds["script"])
    yield figure("pipeline", "time of dvc repro over the script", "×", over(seconds, "repro", "script"), most=2)
    workspace.run("dvc", "repro")
    workspace.commit()
    idle = {name: timed(partial(workspace.run, "dvc", name)) for name in ("repro", "status")}
    seconds = take_turns(idle, idle_rounds)
    name = "time of dvc repro with nothing to do over dvc status"
    yield figure("pipeline", name, "×", over(seconds, "repro", "status"), most=1.3)


def tracking(folder: Path, epochs: int, rounds: int) -> list[Figure]:
    """Compare trainings in this process, with the default settings on as many rows as by default."""
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    configure(threads=1)
    gc.set_threshold(errors.GARBAGE_AFTER)  # as in a stage
    datasets = open_verified(make_table(folder / "table", 800), "train", "validation")
    settings, store, cpu = TrainSettings(device="cpu", epochs=epochs), Store(), torch.device("cpu")

    def logged(train_it: bool) -> tuple[float, float]:
        origin = Origin(params={}, tags={}, table=datasets[0].table, artifacts={})
        calls = []
        started = time.perf_counter()
        with store.training_run(TrackSettings(), "benchmark", secrets.token_hex(32), lambda: origin) as run:
            opened = time.perf_counter()
            if train_it:
                train(datasets, settings, cpu, lambda epoch: calls.append(timed(lambda: log(run, epoch))()))
            sending, trained = sender_seconds(), time.perf_counter()
        ended = time.perf_counter()
        return ended - started, opened - started + sum(calls) + sending + ended - trained

    def not_logged() -> tuple[float, float]:
        return timed(lambda: train(datasets, settings, cpu, lambda _: None))(), 0.0

    turns = {"logged": lambda: logged(True), "store alone": lambda: logged(False), "not logged": not_logged}
    results = take_turns(turns, rounds)
    seconds = {name: np.array(each).T for name, each in results.items()}  # [2, rounds]: all, and those of logging
    (whole, logging), (store_whole, store_logging) = seconds["logged"], seconds["store alone"]
    counted = 1 + (logging - store_logging) / (whole - logging)
    name = "time of the training logged over not logged"
    return [
        figure("pipeline", f"training of {epochs} epochs, not logged", "s", seconds["not logged"][0]),
        figure("pipeline", "opening and closing the store", "s", store_whole),
        figure("pipeline", name, "×", (whole - store_whole) / seconds["not logged"][0], most=1.05),
        figure("pipeline", f"{name}, counted inside one training", "×", counted, most=1.05),
    ]


def sender_seconds() -> float:
    """Return the CPU seconds that the thread which sends to the store has taken."""
    sender = next(thread for thread in threading.enumerate() if thread.name == "uploader")
    assert sender.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(sender.ident))


def log(run: Run, epoch: Epoch) -> None:
    """Log what src/train.py logs."""
    run.log_metrics({name: value for name, value in vars(epoch).items() if name != "epoch"}, epoch.epoch)


def main() -> None:
    """Compare all three."""
    given = arguments(__doc__, rounds=5, idle_rounds=11, epochs=1000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        figures = [*commands(folder, given.rounds, given.idle_rounds)]
        (folder / "table").mkdir()
        figures += in_own_process(tracking, folder, given.epochs, given.rounds)
    save(given.out, "pipeline", figures)


if __name__ == "__main__":
    main()
