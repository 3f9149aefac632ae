"""What it costs that the rows come from a file.

Three comparisons on one thread, on a table of 4 features, each side taking turns with the other in one process: a shuffled
pass over the loader, cut into batches, against a bare loop of `numpy.take` over the same memory map and a NumPy permutation;
single rows, in random order, against `TensorDataset` in memory; and an epoch of the torch engine with batches of 256 on
shuffled rows from the file against the same steps on tensors in memory, sliced in order.

Usage: python benchmarks/loader.py [--rounds N] [--rows N] [--single-rows N]
"""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measure import Figure, arguments, figure, make_table, over, save, take_turns, timed
from torch.utils.data import TensorDataset

from truefit.data.batches import ShuffledChunks, make_loader, transformed
from truefit.data.dataset import TableDataset
from truefit.model.scaling import ScaleSettings
from truefit.training.build import untrained_model
from truefit.training.device import configure
from truefit.training.engines.base import StepSettings
from truefit.training.engines.torch_engine import TorchEngine, make_train_step
from truefit.training.losses import make_loss
from truefit.training.optimizers import OptimizerSettings, make_optimizer
from truefit.training.settings import TrainSettings

STEP = StepSettings(optimizer=OptimizerSettings(lr=0.01))


def loader_alone(folder: Path, dataset: TableDataset, batch: int, rounds: int) -> Figure:
    """Compare passes that hand out the features and the target of each batch."""
    sampler = ShuffledChunks(len(dataset), batch, seed=42, shuffle="full")
    mapped = np.asarray(np.load(folder / "train.npy", mmap_mode="r"))  # as a plain array, which is cut faster than a memmap
    epochs, generator = itertools.count(1), np.random.default_rng(42)

    def ours() -> None:
        sampler.set_epoch(next(epochs))
        for features, target in make_loader(dataset, sampler):
            for _ in zip(features.split(batch), target.split(batch), strict=True):
                pass

    def bare() -> None:
        order = generator.permutation(len(mapped))
        for at in range(0, len(order), batch):
            rows = np.take(mapped, order[at : at + batch], axis=0)
            _ = rows[:, :-1], rows[:, -1:]

    seconds = take_turns({"loader": timed(ours), "bare": timed(bare)}, rounds)
    return figure("loader", f"over numpy.take, batch {batch}", "×", over(seconds, "bare", "loader"), least=0.7)


def single_rows(dataset: TableDataset, rows: int, rounds: int) -> Figure:
    """Compare `dataset[i]` of single rows."""
    in_memory = TensorDataset(*(values.contiguous() for values in dataset[:]))
    order = np.random.default_rng(42).integers(len(dataset), size=rows).tolist()

    def read(source: TableDataset | TensorDataset) -> None:
        for index in order:
            source[index]

    seconds = take_turns({"ours": timed(lambda: read(dataset)), "memory": timed(lambda: read(in_memory))}, rounds)
    return figure("loader", "time of a single row over TensorDataset", "×", over(seconds, "ours", "memory"), most=1.5)


def whole_epoch(dataset: TableDataset, batch: int, rounds: int) -> Iterator[Figure]:
    """Compare epochs of the torch engine."""
    settings = TrainSettings(scale=ScaleSettings(features="none", target="none"))
    models = [untrained_model([dataset], settings) for _ in range(2)]
    read, in_memory = (model.body for model in models)
    engine = TorchEngine(read, STEP, torch.device("cpu"))
    step = make_train_step(in_memory, make_loss(STEP.loss), make_optimizer(list(in_memory.parameters()), STEP.optimizer))
    sampler = ShuffledChunks(len(dataset), batch, seed=42, shuffle="full")
    features, target = (values.contiguous() for values in dataset[:])
    epochs = itertools.count(1)

    def from_file() -> float:
        epoch = next(epochs)
        sampler.set_epoch(epoch)
        engine.begin_epoch(epoch, STEP.optimizer.lr)
        chunks = make_loader(transformed(dataset, transform=models[0].scale), sampler)
        return float(sum(engine.train_chunk(x, y, batch).sum() for x, y in chunks))

    def from_memory() -> float:
        batches = zip(features.split(batch), target.split(batch), strict=True)
        return float(torch.stack([step(*one) for one in batches]).double().sum())

    seconds = take_turns({"file": timed(from_file), "memory": timed(from_memory)}, rounds)
    name = f"epoch of the torch engine, batch {batch}"
    yield figure("loader", f"{name}, from the file", "s", seconds["file"])
    yield figure("loader", f"{name}: time over in memory", "×", over(seconds, "file", "memory"))


def main() -> None:
    """Compare all three."""
    given = arguments(__doc__, rounds=15, rows=1_000_000, single_rows=100_000)
    configure(threads=1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_table(Path(temporary), given.rows)
        dataset = TableDataset(folder, "train")
        figures = [loader_alone(folder, dataset, batch, given.rounds) for batch in (16, 256, 4096)]
        figures.append(single_rows(dataset, given.single_rows, given.rounds))
        figures += whole_epoch(dataset, 256, given.rounds)
    save(given.out, "loader", figures)


if __name__ == "__main__":
    main()
