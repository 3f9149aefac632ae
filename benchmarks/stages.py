"""The stages generate and prepare against pandas, and `truefit predict` against prepare, each in a process of its own.

`generate` against `DataFrame.to_csv`, which has its numbers already; `prepare`, which checks, splits and writes, against
`pandas.read_csv` in chunks, which does not. `predict` reads the same CSV, and writes its text with one column more. Seconds
are those of the work, without imports. The sides take turns. Eight parts, which are the CSV eight times, are prepared by one
process on one core and by two on two.

Usage: python benchmarks/stages.py [--rounds N] [--rows N] [--to-csv-rows N]
"""

import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from measure import arguments, figure, in_own_process, make_table, over, save, synthetic, take_turns

from truefit.cli.prediction import predict
from truefit.data.generating import TARGET
from truefit.data.table import Dtype, read_table
from truefit.ingest.prepare import PrepareSettings, write_table
from truefit.ingest.split import SPLIT_CHUNK_ROWS
from truefit.ingest.synthetic import DRAWN_ROWS, draw_chunk, write_csv
from truefit.model.files import open_model, save_model
from truefit.model.models import ModelSettings, build_model
from truefit.model.scaling import ScaleSettings, unfitted_scaling
from truefit.training.device import configure

PARTS = 8


def generate(folder: Path, rows: int) -> float:
    """Return the seconds a row of drawing and writing."""
    started = time.perf_counter()
    write_csv(synthetic(rows), folder / "data.csv")
    return (time.perf_counter() - started) / rows


def to_csv(folder: Path, rows: int) -> float:
    """Return the seconds a row of writing the same columns with pandas."""
    settings = synthetic(rows)
    chunks = [np.column_stack(draw_chunk(settings, chunk)) for chunk in range(-(-rows // DRAWN_ROWS))]
    frame = pd.DataFrame(np.concatenate(chunks), columns=[*settings.features, TARGET])
    started = time.perf_counter()
    frame.to_csv(folder / "pandas.csv", index=False)
    return (time.perf_counter() - started) / rows


def prepare(folder: Path, rows: int) -> float:
    """Return the seconds a row of preparing the table."""
    started = time.perf_counter()
    table = write_table(PrepareSettings(csv=str(folder / "data.csv")), folder / "prepared").table
    seconds = time.perf_counter() - started
    assert sum(table.rows.values()) == rows
    return seconds / rows


def prepare_parts(folder: Path, rows: int, cores: int) -> float:
    """Return the seconds a row of preparing eight parts, each the whole CSV, on so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    for number in range(PARTS):
        (parts / f"{number}.csv").unlink(missing_ok=True)
        (parts / f"{number}.csv").hardlink_to(folder / "data.csv")
    started = time.perf_counter()
    table = write_table(PrepareSettings(csv=str(parts)), folder / "prepared").table
    seconds = time.perf_counter() - started
    assert sum(table.rows.values()) == PARTS * rows
    return seconds / (PARTS * rows)


def read_csv(folder: Path, rows: int) -> float:
    """Return the seconds a row of reading the CSV with pandas in chunks of as many rows as prepare's."""
    started = time.perf_counter()
    with pd.read_csv(folder / "data.csv", chunksize=SPLIT_CHUNK_ROWS) as chunks:
        read = sum(len(chunk) for chunk in chunks)
    seconds = time.perf_counter() - started
    assert read == rows
    return seconds / rows


def predicting(folder: Path, rows: int, model: ModelSettings, dtype: Dtype) -> float:
    """Return the seconds a row of predicting the CSV with a model that nobody trained."""
    table = read_table(make_table(folder / "model", 800)).model_copy(update={"dtype": dtype})
    scale = ScaleSettings(features="none", target="none")
    built = build_model(model, unfitted_scaling(scale, len(table.features)), table, seed=0)
    save_model(folder / "model", built.state_dict(), model, scale, table)
    configure(threads=1)
    opened, description = open_model(folder / "model")
    started = time.perf_counter()
    assert predict(opened, description, folder / "data.csv", folder / "predicted.csv").rows == rows
    return (time.perf_counter() - started) / rows


def main() -> None:
    """Compare the stages, and predict."""
    given = arguments(__doc__, rounds=7, rows=2_000_000, to_csv_rows=500_000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        writing = {
            "generate": lambda: in_own_process(generate, folder, given.rows),
            "to_csv": lambda: in_own_process(to_csv, folder, given.to_csv_rows),
        }
        reading = {
            "prepare": lambda: in_own_process(prepare, folder, given.rows),
            "read_csv": lambda: in_own_process(read_csv, folder, given.rows),
        }
        linear, mlp = ModelSettings(), ModelSettings(name="mlp", hidden=(64, 64))
        models: dict[str, tuple[ModelSettings, Dtype]] = {
            "predict, linear": (linear, "float32"),
            "predict, linear, float64": (linear, "float64"),
            "predict, mlp [64, 64]": (mlp, "float32"),
        }
        reading |= {name: partial(in_own_process, predicting, folder, given.rows, *model) for name, model in models.items()}
        parts = {
            f"prepare of {PARTS} parts, {cores} core{'s' * (cores > 1)}": partial(
                in_own_process, prepare_parts, folder, given.rows, cores
            )
            for cores in (1, 2)
        }
        seconds = take_turns(writing, given.rounds) | take_turns(reading, given.rounds) | take_turns(parts, given.rounds)
    figures = [figure("stages", name, "M rows/s", 1e-6 / np.array(each)) for name, each in seconds.items()]
    figures.append(figure("stages", "generate over pandas.to_csv", "×", over(seconds, "to_csv", "generate"), least=8))
    figures.append(figure("stages", "prepare over pandas.read_csv", "×", over(seconds, "read_csv", "prepare"), least=0.6))
    gain = over(seconds, *parts)
    figures.append(figure("stages", f"prepare of {PARTS} parts, two cores over one", "×", gain, least=1.6))
    for name in models:
        least = 0.5 if "linear" in name else None
        figures.append(figure("stages", f"{name} over prepare", "×", over(seconds, "prepare", name), least=least))
    save(given.out, "stages", figures)


if __name__ == "__main__":
    main()
