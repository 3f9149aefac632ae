"""The CSV's numbers in batches of rows: by pyarrow's fast reader, and cell by cell from where that cannot go on."""

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
from numpy.typing import NDArray
from tqdm import tqdm

from truefit.data.table import SPLITS, Dtype
from truefit.ingest.csv_check import EXACT, checked_rows
from truefit.ingest.csv_file import CsvFile, OnBytes

BLOCK_BYTES = 1 << 20  # that pyarrow parses at a time; a row that is longer is left to csv_check.py
SLOW_ROWS = 4096  # that csv_check.py gives at a time
_LONG_INTEGER = r"^[ \t]*[+-]?[0-9]{16,}[ \t]*$"

# The values [B, columns] of some rows and, with a split column, each one's position in SPLITS [B].
Batch = tuple[NDArray[Any], NDArray[np.uint8]]


def read_batches(source: CsvFile, columns: list[str], dtype: Dtype, split: str | None, title: str) -> Iterator[Batch]:
    """Give all rows, in their order; `columns` must hold finite numbers of `dtype`, `split` the name of a split.

    Memory is bounded by a block of text. Raises TableError, naming file, line and column, for a CSV that cannot be used; what
    was given before counts for nothing then.
    """
    # Large numbers are rare, and to tell them from integers that float64 rounds takes their text.
    readers = _fast_batches, partial(_fast_batches, as_text=True), _slow_batches
    given = 0
    with tqdm(total=source.size, desc=title, unit="B", unit_scale=True, disable=None) as bar:
        for reader in readers:
            bar.reset()
            read = 0  # rows, from the beginning
            try:
                for values, codes in reader(source, columns, dtype, split, lambda content: bar.update(len(content))):
                    known = max(0, given - read)
                    read += len(values)
                    if read > given:
                        given = read
                        yield values[known:], codes[known:]
            except pa.ArrowInvalid:
                continue
            return


def _fast_batches(
    source: CsvFile, columns: list[str], dtype: Dtype, split: str | None, on_bytes: OnBytes, as_text: bool = False
) -> Iterator[Batch]:
    """Give the rows as pyarrow reads them; raises pa.ArrowInvalid for what must be looked at as text, or cell by cell."""
    types = dict.fromkeys(columns, pa.string() if as_text else pa.float64())
    if split is not None:
        types[split] = pa.string()
    limit = np.inf if as_text else EXACT  # beyond, an integer may have been rounded
    rows = 0
    with (
        source.content(on_bytes) as stream,
        pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(delimiter=source.separator, newlines_in_values=True),
            # An empty cell must not become a missing value: it is refused as a number.
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[]),
        ) as batches,
    ):
        for batch in batches:
            rows += batch.num_rows
            values = _matrix(batch, columns, dtype)
            if not (values.min(initial=0) > -limit and values.max(initial=0) < limit):
                raise pa.ArrowInvalid("found what is not a finite number, or a large one")
            yield values, np.empty(0, np.uint8) if split is None else _codes(batch.column(split))
    if not rows:
        raise pa.ArrowInvalid("found no rows")
    if stream.has_quotes:
        # pyarrow forgives a quote that is left open, and takes the rows behind it for text.
        deque(source.rows(), maxlen=0)


def _slow_batches(source: CsvFile, columns: list[str], dtype: Dtype, split: str | None, on_bytes: OnBytes) -> Iterator[Batch]:
    rows = checked_rows(source, columns, dtype, split, on_bytes)
    while batch := list(islice(rows, SLOW_ROWS)):
        codes = [SPLITS.index(name) for _, name in batch if name]
        yield np.array([values for values, _ in batch], dtype), np.array(codes, np.uint8)


def _matrix(batch: pa.RecordBatch, columns: list[str], dtype: Dtype) -> NDArray[Any]:
    """Return an array [C, columns]; what `dtype` cannot hold becomes infinite."""
    values = np.empty((batch.num_rows, len(columns)), dtype)
    with np.errstate(over="ignore"):
        for index, name in enumerate(columns):
            column = batch.column(name)
            if column.type == pa.string():
                if pyarrow.compute.any(pyarrow.compute.match_substring_regex(column, _LONG_INTEGER)).as_py():
                    raise pa.ArrowInvalid("found an integer that may be beyond 2^53")
                column = pyarrow.compute.ascii_trim(column, characters=" \t").cast(pa.float64())
            values[:, index] = np.from_dlpack(column)  # to_numpy imports pandas
    return values


def _codes(column: pa.Array) -> NDArray[np.uint8]:
    codes = pyarrow.compute.index_in(column, value_set=pa.array(SPLITS))
    if codes.null_count:
        raise pa.ArrowInvalid("found a split that is not known")
    return np.from_dlpack(codes).astype(np.uint8)
