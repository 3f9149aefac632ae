"""Synthetic regression data, y = a + b·x + noise, drawn in seeded chunks.

Writes one CSV with the columns x1 … xF and y. Guarantees the same bytes for the same settings: each chunk has a generator
of its own, every number is written with the digits that read back exactly, and memory holds one chunk, whatever the rows.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from pydantic import Field, model_validator
from tqdm import tqdm

from truefit.config import Settings, impossible
from truefit.files import atomic_path
from truefit.seeds import numpy_generator

# Part of the data's definition: another length draws other rows from the same seed.
CHUNK_ROWS = 65_536


class GenerateSettings(Settings):
    """Section `generate`: the line that the data is drawn around, and the noise."""

    rows: int = Field(1000, ge=1)
    seed: int = Field(42, ge=0)
    intercept: float = 1.0
    coefficients: Annotated[tuple[float, ...], Field(strict=False, min_length=1)] = (2.0,)
    low: float = 0.0
    high: float = 1.0
    noise_std: float = Field(0.1, ge=0)

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if not self.low < self.high:
            raise impossible("high", self.high, f"more than generate.low, {self.low}")
        if not math.isfinite(self.high - self.low):
            raise impossible("high", self.high, f"a number whose distance from generate.low, {self.low}, is finite")
        return self

    @property
    def features(self) -> list[str]:
        """The feature columns' names, one for each coefficient."""
        return [f"x{number}" for number in range(1, len(self.coefficients) + 1)]


TARGET = "y"


def draw_chunk(settings: GenerateSettings, chunk: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the features [C, F] and target [C] of rows chunk·CHUNK_ROWS onwards, C at most CHUNK_ROWS.

    Features are uniform on [low, high); the noise is normal with standard deviation noise_std.
    """
    rows = min(CHUNK_ROWS, settings.rows - chunk * CHUNK_ROWS)
    generator = numpy_generator(settings.seed, "generate", chunk)
    features = generator.uniform(settings.low, settings.high, (rows, len(settings.coefficients)))  # [C, F]
    target = np.full(rows, settings.intercept)  # [C]
    # One column after the other rather than a matrix product, whose rounding depends on the machine's BLAS.
    for column, coefficient in enumerate(settings.coefficients):
        target += coefficient * features[:, column]
    target += settings.noise_std * generator.standard_normal(rows)
    return features, target


def write_csv(settings: GenerateSettings, path: Path) -> None:
    """Draw the data and write it to `path`, atomically, with a progress bar where stderr is a terminal."""
    schema = pa.schema([(name, pa.float64()) for name in [*settings.features, TARGET]])
    options = pyarrow.csv.WriteOptions(quoting_header="none")
    with atomic_path(path) as temporary, pyarrow.csv.CSVWriter(str(temporary), schema, write_options=options) as writer:
        for features, target in tqdm(_chunks(settings), "generate", -(-settings.rows // CHUNK_ROWS), disable=None):
            # Not pa.array(), which imports pandas to see whether the column is one of its own: half of the stage's time.
            columns = [pa.py_buffer(column) for column in [*np.ascontiguousarray(features.T), target]]
            arrays = [pa.Array.from_buffers(pa.float64(), len(target), [None, column]) for column in columns]
            writer.write_batch(pa.record_batch(arrays, schema))


def _chunks(settings: GenerateSettings) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    for chunk in range(-(-settings.rows // CHUNK_ROWS)):
        yield draw_chunk(settings, chunk)
