"""The CSV's numbers in batches of rows: by pyarrow's fast reader where it takes the CSV, else cell by cell.

Reads a CSV that csv_check.py has open; writes nothing. Guarantees that every value is the finite number that the CSV says,
and memory bounded by a block of its text. What the fast reader cannot take, or might take otherwise than it was meant,
csv_check.py reads.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
from numpy.typing import NDArray
from tqdm import tqdm

from truefit.data.table import SPLITS, Dtype
from truefit.ingest.csv_check import EXACT, CsvFile, See, checked_rows

# What pyarrow parses at a time; a row that is longer is left to csv_check.py.
BLOCK_BYTES = 1 << 20
_FLOAT64 = pa.float64()
_LONG_INTEGER = r"^[ \t]*[+-]?[0-9]{16,}[ \t]*$"

# The values [B, columns] of some rows and, with a split column, each one's position in SPLITS [B].
Batch = tuple[NDArray[Any], NDArray[np.uint8]]
# Reads the CSV from its beginning, and shows the file's bytes.
Read = Callable[[See], Iterator[Batch]]
Result = TypeVar("Result")


def read_batches(
    source: CsvFile, columns: list[str], dtype: Dtype, split: str | None, title: str, take: Callable[[Read], Result]
) -> Result:
    """Return what `take` makes of the batches of the CSV's rows, with a progress bar of that title.

    `columns` must hold finite numbers of `dtype`, `split` the name of a split. `take` is called once for each way to read,
    the fastest first, until one can; each time it reads from the beginning, and must forget what it had.
    Raises TableError, naming file, line and column, for a CSV that cannot be used.
    """
    with tqdm(total=source.size, desc=title, unit="B", unit_scale=True, disable=None) as bar:

        def start(batches: Callable[..., Iterator[Batch]]) -> Read:
            def read(see: See) -> Iterator[Batch]:
                return batches(source, columns, dtype, split, lambda content: (see(content), bar.update(len(content))))

            bar.reset()
            return read

        # Large numbers are rare, and to tell them from integers that float64 rounds takes their text.
        for batches in (_fast_batches, partial(_fast_batches, number=pa.string())):
            with suppress(pa.ArrowInvalid):
                return take(start(batches))
        return take(start(_slow_batches))


def _fast_batches(
    source: CsvFile, columns: list[str], dtype: Dtype, split: str | None, see: See, number: pa.DataType = _FLOAT64
) -> Iterator[Batch]:
    """Give the values [B, columns] and, with a split column, the splits [B] of so many rows at a time, as pyarrow reads them.

    Raises pa.ArrowInvalid when there is something that must be looked at cell by cell.
    """
    types = dict.fromkeys(columns, number) | ({split: pa.string()} if split is not None else {})
    quotes = False

    def look(content: bytes) -> None:
        nonlocal quotes
        quotes = quotes or b'"' in content

    with (
        source.content(see, look) as stream,
        pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(delimiter=source.separator, newlines_in_values=True),
            # An empty cell must not become a missing value: it is refused as a number.
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[]),
        ) as batches,
    ):
        empty = True
        for batch in batches:
            empty = empty and not batch.num_rows
            values = _matrix(batch, columns, dtype)
            # Not a number, not finite, or perhaps an integer that was rounded.
            limit = EXACT if number == _FLOAT64 else np.inf
            if not (values.min(initial=0) > -limit and values.max(initial=0) < limit):
                raise pa.ArrowInvalid("found a value to be looked at")
            yield values, np.empty(0, np.uint8) if split is None else _codes(batch.column(split))
    if empty:
        raise pa.ArrowInvalid("found no rows")
    if quotes:
        # pyarrow forgives a quote that is left open, and takes the rows behind it for text.
        deque(source.rows(), maxlen=0)


def _slow_batches(source: CsvFile, columns: list[str], dtype: Dtype, split: str | None, see: See) -> Iterator[Batch]:
    """Give the same as `_fast_batches`, read cell by cell; raises TableError when there are faults."""
    rows = checked_rows(source, columns, dtype, split, see)
    while batch := list(islice(rows, 4096)):
        codes = [SPLITS.index(name) for _, name in batch if name]
        yield np.array([values for values, _ in batch], dtype), np.array(codes, np.uint8)


def _matrix(batch: pa.RecordBatch, columns: list[str], dtype: Dtype) -> NDArray[Any]:
    """Return the batch's columns as an array [C, columns]; what `dtype` cannot hold becomes infinite."""
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
    """Return each row's position in SPLITS."""
    codes = pyarrow.compute.index_in(column, value_set=pa.array(SPLITS))
    if codes.null_count:
        raise pa.ArrowInvalid("found a split that is not known")
    return np.from_dlpack(codes).astype(np.uint8)
