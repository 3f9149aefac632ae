"""Synthetic regression data, y = a + b·x + noise, drawn in seeded chunks."""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from tqdm import tqdm

from truefit.core.files import atomic_path
from truefit.core.seeds import numpy_generator
from truefit.data.generating import TARGET, GenerateSettings

# Part of the data's definition: another length draws other rows from the same seed.
DRAWN_ROWS = 65_536
PIECE_ROWS = 4_096  # that one core puts into digits at a time


def draw_chunk(settings: GenerateSettings, chunk: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the features [C, F] and target [C] of rows chunk·DRAWN_ROWS onwards, C at most DRAWN_ROWS.

    Features are uniform on [low, high); the noise is normal with standard deviation noise_std.
    """
    rows = min(DRAWN_ROWS, settings.rows - chunk * DRAWN_ROWS)
    generator = numpy_generator(settings.seed, "generate", chunk)
    features = generator.uniform(settings.low, settings.high, (rows, len(settings.coefficients)))  # [C, F]
    target = np.full(rows, settings.intercept)  # [C]
    # One column after the other rather than a matrix product, whose rounding depends on the machine's BLAS.
    for column, coefficient in enumerate(settings.coefficients):
        target += coefficient * features[:, column]
    target += settings.noise_std * generator.standard_normal(rows)
    return features, target


def write_csv(settings: GenerateSettings, path: Path) -> None:
    """Write the data atomically as a CSV with the columns x1 … xF and y, each number with the digits that read back exactly.

    Memory holds one chunk of numbers and a few small pieces of text for each core, whatever the rows.
    """
    names = [*settings.features, TARGET]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chunks = range(-(-settings.rows // DRAWN_ROWS))
    # To put numbers into digits takes most of the time, and happens outside Python's lock.
    with atomic_path(path) as temporary, temporary.open("wb") as file, ThreadPoolExecutor(cores) as pool:
        texts: deque[Future[pa.Buffer]] = deque()
        file.write(f"{','.join(names)}\n".encode())
        for chunk in tqdm(chunks, "generate", disable=None):
            features, target = draw_chunk(settings, chunk)
            columns = [*np.ascontiguousarray(features.T), target]
            for start in range(0, len(target), PIECE_ROWS):
                texts.append(pool.submit(_text, [column[start : start + PIECE_ROWS] for column in columns], names))
                if len(texts) > 2 * cores:
                    file.write(texts.popleft().result())
        while texts:
            file.write(texts.popleft().result())


def _text(columns: list[NDArray[np.float64]], names: list[str]) -> pa.Buffer:
    # Not pa.array, which imports pandas.
    arrays = [pa.Array.from_buffers(pa.float64(), len(column), [None, pa.py_buffer(column)]) for column in columns]
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.record_batch(arrays, names), sink, pyarrow.csv.WriteOptions(include_header=False))
    return sink.getvalue()
