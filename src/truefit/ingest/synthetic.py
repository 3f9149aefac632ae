"""Synthetic regression data, y = a + b·x + noise, drawn in seeded chunks."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from tqdm import tqdm

from truefit.core.cores import usable_cores
from truefit.core.files import atomic_path
from truefit.core.seeds import numpy_generator
from truefit.data.generating import TARGET, GenerateSettings

# Part of the data's definition: another length draws other rows from the same seed.
DRAWN_ROWS = 65_536
PIECE_ROWS, PIECE_BYTES = 4_096, 1 << 21  # that one core puts into digits at a time, at most

Rows = tuple[NDArray[np.float64], NDArray[np.float64]]


def draw_chunk(settings: GenerateSettings, chunk: int) -> Rows:
    """Return the features [C, F] and target [C] of rows chunk·DRAWN_ROWS onwards, C at most DRAWN_ROWS.

    Features are uniform on [low, high); the noise is normal with standard deviation noise_std.
    """
    features, target = zip(*_draw_pieces(settings, chunk), strict=True)
    return np.concatenate(features), np.concatenate(target)


def _draw_pieces(settings: GenerateSettings, chunk: int) -> Iterator[Rows]:
    """Give the same rows in pieces, bounded in bytes."""
    rows, width = min(DRAWN_ROWS, settings.rows - chunk * DRAWN_ROWS), len(settings.coefficients)
    uniform, normal = (numpy_generator(settings.seed, "generate", chunk) for _ in range(2))
    # One stream: the noise comes behind all of the chunk's features, of which each takes a number.
    normal.bit_generator.advance(rows * width)  # type: ignore[attr-defined]  # PCG64 has it
    most = max(1, min(PIECE_ROWS, PIECE_BYTES // (8 * width)))
    for start in range(0, rows, most):
        count = min(most, rows - start)
        features = uniform.uniform(settings.low, settings.high, (count, width))  # [P, F]
        target = np.full(count, settings.intercept)  # [P]
        # One column after the other rather than a matrix product, whose rounding depends on the machine's BLAS.
        for column, coefficient in enumerate(settings.coefficients):
            target += coefficient * features[:, column]
        target += settings.noise_std * normal.standard_normal(count)
        yield features, target


def write_csv(settings: GenerateSettings, path: Path) -> None:
    """Write the data atomically as a CSV with the columns x1 … xF and y, each number with the digits that read back exactly.

    Memory holds a few small pieces of numbers and of text for each core, whatever the rows and columns.
    """
    names = [*settings.features, TARGET]
    cores = usable_cores()
    chunks = range(-(-settings.rows // DRAWN_ROWS))
    # To put numbers into digits takes most of the time, and happens outside Python's lock.
    with atomic_path(path) as temporary, temporary.open("wb") as file, ThreadPoolExecutor(cores) as pool:
        texts: deque[Future[pa.Buffer]] = deque()
        file.write(f"{','.join(names)}\n".encode())
        for chunk in tqdm(chunks, "generate", disable=None):
            for features, target in _draw_pieces(settings, chunk):
                texts.append(pool.submit(_text, [*np.ascontiguousarray(features.T), target], names))
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
