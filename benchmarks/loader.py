"""What it costs that the rows come from a file: an epoch read through the loader against one on tensors in memory.

Draws 1M rows of 4 features, prepares them, and times epochs of the torch engine with batches of 256 on one thread: shuffled
rows from the memory-mapped table, and the same steps on tensors already in memory, sliced in order. Both take turns in one
process, so that a noisy machine is noisy for both. Prints the medians, their quartiles and the ratio of each pair.

Usage: python benchmarks/loader.py [PAIRS]
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from pairs import print_pairs

from truefit.batches import ShuffledChunks, make_loader
from truefit.dataset import TableDataset
from truefit.device import configure
from truefit.engines import make_train_step
from truefit.engines.torch_engine import TorchEngine
from truefit.ingest import PrepareSettings, write_table
from truefit.models import ModelSettings, build_model
from truefit.optimization import LossSettings, OptimizerSettings, batch_sums, make_loss, make_optimizer
from truefit.synthetic import GenerateSettings, write_csv

ROWS, BATCH = 1_000_000, 256
LOSS, OPTIMIZER = LossSettings(), OptimizerSettings(lr=0.01)


def epoch_from_file(engine: TorchEngine, dataset: TableDataset, epoch: int) -> float:
    """Take an epoch's steps on rows shuffled and read from the file; return its summed loss."""
    sampler = ShuffledChunks(len(dataset), BATCH, seed=42, shuffle="full")
    sampler.set_epoch(epoch)
    engine.begin_epoch(epoch, OPTIMIZER.lr)
    total = 0.0
    for features, target in make_loader(dataset, sampler):
        total += float(engine.train_chunk(features, target, BATCH).sum())
    return total


def main() -> None:
    """Time pairs of epochs and print what they took."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    configure(threads=1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_csv(GenerateSettings(rows=ROWS * 10 // 8, coefficients=(1.0, -2.0, 3.0, 0.5)), folder / "data.csv")
        write_table(PrepareSettings(csv=str(folder / "data.csv")), folder)
        dataset = TableDataset(folder, "train")
        read, in_memory = (build_model(ModelSettings(), dataset.table, standardize=False, seed=42) for _ in range(2))
        engine = TorchEngine(read, LOSS, OPTIMIZER, None, torch.device("cpu"))
        optimizer = make_optimizer(list(in_memory.parameters()), OPTIMIZER)
        step = make_train_step(in_memory, make_loss(LOSS.name, LOSS.reduction), optimizer)
        features, target = (values.contiguous() for values in dataset[:])

        def epoch_in_memory() -> float:
            batches = zip(features.split(BATCH), target.split(BATCH), strict=True)
            losses = torch.stack([step(*batch) for batch in batches])
            return float(batch_sums(losses.double(), ROWS, BATCH, "mean").sum())

        assert len(dataset) == ROWS
        seconds = []
        for pair in range(pairs + 1):
            started = time.perf_counter()
            epoch_from_file(engine, dataset, pair + 1)
            between = time.perf_counter()
            epoch_in_memory()
            seconds.append((between - started, time.perf_counter() - between))
    print_pairs("from the file", "in memory", seconds)


if __name__ == "__main__":
    main()
