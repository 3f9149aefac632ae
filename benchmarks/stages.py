"""The stages generate and prepare against pandas, each in a process of its own.

`generate` against `DataFrame.to_csv`, which has its numbers already; `prepare`, which checks, splits and writes, against
`pandas.read_csv` in chunks, which does not. Seconds are those of the work, without imports. Both sides take turns.

Usage: python benchmarks/stages.py [--rounds N] [--rows N] [--to-csv-rows N]
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from measure import arguments, figure, in_own_process, over, save, synthetic, take_turns

from truefit.ingest import CHUNK_ROWS, PrepareSettings, write_table
from truefit.synthetic import TARGET, draw_chunk, write_csv


def generate(folder: Path, rows: int) -> float:
    """Return the seconds a row of drawing and writing."""
    started = time.perf_counter()
    write_csv(synthetic(rows), folder / "data.csv")
    return (time.perf_counter() - started) / rows


def to_csv(folder: Path, rows: int) -> float:
    """Return the seconds a row of writing the same columns with pandas."""
    settings = synthetic(rows)
    chunks = [np.column_stack(draw_chunk(settings, chunk)) for chunk in range(-(-rows // CHUNK_ROWS))]
    frame = pd.DataFrame(np.concatenate(chunks), columns=[*settings.features, TARGET])
    started = time.perf_counter()
    frame.to_csv(folder / "pandas.csv", index=False)
    return (time.perf_counter() - started) / rows


def prepare(folder: Path, rows: int) -> float:
    """Return the seconds a row of preparing the table."""
    started = time.perf_counter()
    table = write_table(PrepareSettings(csv=str(folder / "data.csv")), folder / "prepared")
    seconds = time.perf_counter() - started
    assert sum(table.rows.values()) == rows
    return seconds / rows


def read_csv(folder: Path, rows: int) -> float:
    """Return the seconds a row of reading the CSV with pandas in chunks of as many rows as prepare's."""
    started = time.perf_counter()
    with pd.read_csv(folder / "data.csv", chunksize=CHUNK_ROWS) as chunks:
        read = sum(len(chunk) for chunk in chunks)
    seconds = time.perf_counter() - started
    assert read == rows
    return seconds / rows


def main() -> None:
    """Compare both stages."""
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
        seconds = take_turns(writing, given.rounds) | take_turns(reading, given.rounds)
    figures = [figure("stages", name, "M rows/s", 1e-6 / np.array(each)) for name, each in seconds.items()]
    figures.append(figure("stages", "generate over pandas.to_csv", "×", over(seconds, "to_csv", "generate"), least=8))
    figures.append(figure("stages", "prepare over pandas.read_csv", "×", over(seconds, "read_csv", "prepare"), least=0.6))
    save(given.out, "stages", figures)


if __name__ == "__main__":
    main()
