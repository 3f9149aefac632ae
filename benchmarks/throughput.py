"""An epoch's throughput against the peers', and that of an mlp compiled against eager.

Linear model, 4 float32 features, MSE, SGD, one thread for the steps: two epochs from new parameters, of which the second is
timed, its shuffle and validation included. truefit reads the rows from its table file, the next ones in a thread beside the
steps; of the peers, Hugging Face datasets and tensordict read them from theirs, the others have them in memory. All take turns
in one process; each ratio is within a round. Ends with an error where a competitor did not learn what the others did.

Usage: python benchmarks/throughput.py [--rounds N] [--rows-16 N] [--rows-256 N] [--rows-4096 N] [--rows-mlp N]
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from measure import Figure, arguments, figure, make_table, over, save, take_turns
from peers import EPOCHS, LEARNING_RATE, PEERS, Trained, Work
from threadpoolctl import threadpool_limits

from truefit.data.dataset import TableDataset, open_verified
from truefit.model.models import ModelSettings
from truefit.model.scaling import ScaleSettings
from truefit.training.device import configure
from truefit.training.engines import EngineName
from truefit.training.loop import train
from truefit.training.optimizers import OptimizerSettings
from truefit.training.progress import Epoch
from truefit.training.schedules import ScheduleSettings
from truefit.training.settings import TrainSettings

TUTORIAL = next(iter(PEERS))
ENGINES = [name for name in get_args(EngineName) if name != "auto"]
# The bounds: epochs of an engine in the time of one of the tutorial's loop, by batch size.
LEAST: dict[str, dict[int, float]] = {"torch": {16: 1.5, 256: 8, 4096: 100}, "compiled": {16: 15, 256: 60, 4096: 300}}


def truefit(datasets: list[TableDataset], settings: TrainSettings) -> Trained:
    """Train with truefit and time the last epoch."""
    configure(settings.threads)
    ends: list[tuple[float, Epoch]] = []
    train(datasets, settings, torch.device("cpu"), lambda epoch: ends.append((time.perf_counter(), epoch)))
    (before, _), (after, epoch) = ends[-2:]
    return Trained(after - before, epoch.train_loss, epoch.validation_loss)


def run(competitors: dict[str, Callable[[], Trained]], rounds: int) -> dict[str, list[float]]:
    """Return each competitor's seconds, round by round; raises SystemExit where one did not learn what the others did.

    Losses may differ by a fifth: small batches leave noise, large ones what is left of the initial parameters. Those that
    have learned nothing would give a hundredfold.
    """

    def alone(competitor: Callable[[], Trained]) -> Trained:
        # truefit's own switch, which is not to slow the others.
        torch.set_deterministic_debug_mode("default")
        return competitor()

    results = take_turns({name: partial(alone, one) for name, one in competitors.items()}, rounds, warm=False)
    for kind in ("loss", "validation_loss"):
        losses = {name: getattr(trained[-1], kind) for name, trained in results.items()}
        middle = statistics.median(loss for loss in losses.values() if not math.isnan(loss))
        for name, loss in losses.items():
            if abs(loss / middle - 1) > 0.2:
                raise SystemExit(f"{name} ended with the {kind} {loss:.6g}, the others with {middle:.6g}")
    return {name: [trained.seconds for trained in each] for name, each in results.items()}


def throughput(batch: int, rows: int, rounds: int) -> Iterator[Figure]:
    """Time all competitors at a batch size."""
    with tempfile.TemporaryDirectory() as temporary:
        splits = open_verified(make_table(Path(temporary), rows), "train", "validation")
        (x, y), (validation_x, validation_y) = ([values.contiguous() for values in split[:]] for split in splits)
        work = Work(x, y, validation_x, validation_y, batch)
        competitors: dict[str, Callable[[], Trained]] = {name: partial(peer, work) for name, peer in PEERS.items()}
        for engine in ENGINES:
            settings = TrainSettings(
                engine=engine,
                device="cpu",
                scale=ScaleSettings(features="none", target="none"),  # as the peers, which also keep to one rate
                batch_size=batch,
                epochs=EPOCHS,
                optimizer=OptimizerSettings(lr=LEARNING_RATE),
                schedule=ScheduleSettings(name="constant"),
            )
            competitors[f"truefit {engine}"] = partial(truefit, splits, settings)
        seconds = run(competitors, rounds)
    for name in competitors:
        group, engine = f"throughput at batch {batch}", name.removeprefix("truefit ")
        yield figure(group, name, "M rows/s", [rows / 1e6 / each for each in seconds[name]])
        least = LEAST.get(engine, {}).get(batch)
        if name != TUTORIAL:
            yield figure(group, f"{name} over {TUTORIAL}", "×", over(seconds, TUTORIAL, name), least=least)
        if "truefit compiled" in seconds and name in PEERS and name != TUTORIAL:
            ahead = None if name.startswith("scikit-learn") and batch == 16 else 1.0
            yield figure(group, f"truefit compiled over {name}", "×", over(seconds, name, "truefit compiled"), least=ahead)


def mlp(rows: int, rounds: int) -> Iterator[Figure]:
    """Time an mlp of two hidden layers, with adam and batches of 64."""
    engines = [engine for engine in ENGINES if engine in LEAST]
    with tempfile.TemporaryDirectory() as temporary:
        splits = open_verified(make_table(Path(temporary), rows), "train", "validation")
        every = {
            engine: TrainSettings(
                engine=engine,
                device="cpu",
                model=ModelSettings(name="mlp", hidden=(64, 64)),
                optimizer=OptimizerSettings(name="adam", lr=0.001),
                batch_size=64,
                epochs=EPOCHS,
            )
            for engine in engines
        }
        seconds = run({engine: partial(truefit, splits, each) for engine, each in every.items()}, rounds)
    group = "mlp [64, 64], adam, batch 64"
    for engine in engines:
        yield figure(group, f"truefit {engine}", "M rows/s", [rows / 1e6 / each for each in seconds[engine]])
    if "compiled" in engines:
        yield figure(group, "truefit compiled over torch", "×", over(seconds, "torch", "compiled"), least=4)


def main() -> None:
    """Time each batch size, and the mlp."""
    given = arguments(__doc__, rounds=5, rows_16=200_000, rows_256=1_000_000, rows_4096=1_000_000, rows_mlp=200_000)
    torch.set_num_threads(1)
    threadpool_limits(1)
    figures: list[Figure] = []
    for batch in (16, 256, 4096):
        figures += throughput(batch, getattr(given, f"rows_{batch}"), given.rounds)
        save(given.out, "throughput", figures)
    save(given.out, "throughput", [*figures, *mlp(given.rows_mlp, given.rounds)])


if __name__ == "__main__":
    main()
