"""A table of categories, from its CSV to a linear model after one epoch, against scikit-learn's way; and quoted cells.

truefit prepares the table and takes an epoch of steps on batches of 256, its rows made one-hot on the way. scikit-learn has
the CSV from pandas, a chunk at a time, a ColumnTransformer with a OneHotEncoder, and SGDRegressor.partial_fit, which takes a
step a row. Both are told of the 20 values of a column by the data alone, and each has a process of its own.
`prepare` on numbers is timed with and without quotes around the cells. Seconds are those of the work, without imports. The
sides take turns.

Usage: python benchmarks/categories.py [--rounds N] [--rows N]
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import arguments, figure, in_own_process, over, save, synthetic, take_turns
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import SGDRegressor
from sklearn.preprocessing import OneHotEncoder
from threadpoolctl import threadpool_limits

from truefit.data.dataset import open_verified
from truefit.ingest.prepare import PrepareSettings, write_table
from truefit.ingest.split import SPLIT_CHUNK_ROWS
from truefit.ingest.synthetic import write_csv
from truefit.training.build import build_engine, epoch_chunks, untrained_model
from truefit.training.device import configure
from truefit.training.settings import TrainSettings

COLUMNS, VALUES = 10, 20
NAMES = [f"c{column}" for column in range(COLUMNS)]


def write_categories(path: Path, rows: int) -> None:
    """Write a CSV whose target is the sum of an effect of each column's value, with noise."""
    generator = np.random.default_rng(42)
    effects = generator.normal(size=(COLUMNS, VALUES))
    codes = generator.integers(VALUES, size=(rows, COLUMNS))
    words = np.array([f"value{value}" for value in range(VALUES)])
    frame = pd.DataFrame(words[codes], columns=NAMES)
    frame["y"] = effects[np.arange(COLUMNS), codes].sum(axis=1) + generator.normal(0, 0.1, rows)
    frame.to_csv(path, index=False)


def quote(path: Path, quoted: Path) -> None:
    """Write the CSV with quotes around each cell."""
    with path.open() as lines, quoted.open("w") as out:
        for line in lines:
            out.write('"' + line.rstrip("\n").replace(",", '","') + '"\n')


def truefit(folder: Path) -> tuple[float, float]:
    """Return the seconds of stage prepare, and those of an epoch."""
    configure(threads=1)
    started = time.perf_counter()
    write_table(PrepareSettings(csv=str(folder / "categories.csv"), columns=dict.fromkeys(NAMES, "category")), folder)
    prepared = time.perf_counter()
    datasets = open_verified(folder, "train", "validation")
    settings = TrainSettings.model_validate({"engine": "torch", "device": "cpu", "batch_size": 256, "epochs": 1})
    cpu = torch.device("cpu")
    model = untrained_model(datasets, settings)
    engine, chunks = build_engine(model, datasets[0], settings, cpu), epoch_chunks(model, datasets[0], settings, cpu)
    engine.begin_epoch(1, settings.optimizer.lr)
    for _, features, target in chunks.epoch(1):
        engine.train_chunk(features, target, chunks.batch_size)
    return prepared - started, time.perf_counter() - prepared


def scikit_learn(folder: Path) -> tuple[float, float]:
    """Return the seconds of finding the values, which takes a pass over the CSV, and those of another pass, with the steps."""
    with threadpool_limits(1):
        started = time.perf_counter()
        categories = [set[str]() for _ in NAMES]
        for chunk in pd.read_csv(folder / "categories.csv", chunksize=SPLIT_CHUNK_ROWS):
            for name, known in zip(NAMES, categories, strict=True):
                known.update(chunk[name].unique())
        encoder = OneHotEncoder(categories=[sorted(known) for known in categories], handle_unknown="ignore", dtype=np.float32)
        encode, model = ColumnTransformer([("kinds", encoder, NAMES)]), SGDRegressor(eta0=0.01)
        prepared = time.perf_counter()
        for number, chunk in enumerate(pd.read_csv(folder / "categories.csv", chunksize=SPLIT_CHUNK_ROWS)):
            encoded = encode.fit_transform(chunk[NAMES]) if not number else encode.transform(chunk[NAMES])
            model.partial_fit(encoded, chunk["y"])
        return prepared - started, time.perf_counter() - prepared


def prepare(folder: Path, name: str) -> float:
    """Return the seconds of preparing a CSV of numbers."""
    started = time.perf_counter()
    write_table(PrepareSettings(csv=str(folder / name)), folder / "numbers")
    return time.perf_counter() - started


def main() -> None:
    """Compare a table of categories, and quoted numbers with plain ones."""
    given = arguments(__doc__, rounds=5, rows=2_000_000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_categories(folder / "categories.csv", given.rows)
        write_csv(synthetic(given.rows), folder / "plain.csv")
        quote(folder / "plain.csv", folder / "quoted.csv")
        both = {"truefit": truefit, "scikit-learn": scikit_learn}
        epochs = take_turns({name: partial(in_own_process, way, folder) for name, way in both.items()}, given.rounds)
        forms = {name: partial(in_own_process, prepare, folder, f"{name}.csv") for name in ("plain", "quoted")}
        reading = take_turns(forms, given.rounds)
    whole = {name: [sum(parts) for parts in each] for name, each in epochs.items()}
    steps = {name: [seconds for _, seconds in each] for name, each in epochs.items()}
    figures = [figure("categories", f"{name}, CSV to the end of the first epoch", "s", each) for name, each in whole.items()]
    # scikit-learn reads the CSV in each epoch, and truefit once.
    for what, seconds, least in [("CSV to the end of the first epoch", whole, None), ("each further epoch", steps, 1)]:
        ratio = over(seconds, "scikit-learn", "truefit")
        figures.append(figure("categories", f"{what}: time of scikit-learn over truefit's", "×", ratio, least=least))
    ratio = over(reading, "quoted", "plain")
    figures.append(figure("categories", "prepare, quoted numbers: time over plain ones", "×", ratio, most=1.5))
    save(given.out, "categories", figures)


if __name__ == "__main__":
    main()
