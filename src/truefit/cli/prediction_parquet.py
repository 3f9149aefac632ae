"""`truefit predict` of Parquet: the same columns, with their types, and one more."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from torch import nn

from truefit.cli.predicted import Features, Predicted, given_columns, model_cells
from truefit.core.errors import TableError
from truefit.core.files import atomic_path
from truefit.core.text import one_line
from truefit.data.ahead import read_ahead
from truefit.data.columns.base import Column, Parsed
from truefit.data.columns.date import Date
from truefit.ingest.cells import Cells, Wanted
from truefit.ingest.csv_check import require_usable
from truefit.ingest.parquet_batches import read_parquet
from truefit.ingest.parquet_cells import value_reader
from truefit.ingest.parquet_file import ParquetFile
from truefit.model.files import ModelDescription
from truefit.model.serving import Array, predictions

SUFFIX = ".parquet"


def predict_parquet(
    model: nn.Module, description: ModelDescription, source: ParquetFile, target: Path, column: str, blanks: bool, title: str
) -> Predicted:
    """Write the rows of `source` with the predictions in a `column` behind its own to `target`.

    A bar with the title shows how far it is; without a title there is none.

    With `blanks`, that of a row with a cell that is refused, or whose prediction is not finite, is null.

    Raises TableError for a file, or a name of the column, that cannot be used, and OSError where `target` cannot be written;
    what was there stays then.
    """
    if target.suffix != SUFFIX:
        raise TableError(
            f"{target}: is to be written from the Parquet file {source.path}, allowed: a name that ends in {SUFFIX}"
        )
    if target.exists() and target.samefile(source.path):
        raise TableError(f"{target}: is the file to be read, allowed: another one")
    given = given_columns(description, source)
    require_usable(source, [each.name for each in given])
    if not column.strip():
        raise TableError(f"--column: found {one_line(column)!r}, allowed: a name")
    if column.strip() in {*source.header}:
        where = f"{source.path}: column {one_line(column)!r}"
        raise TableError(f"{where}: found the name of the column to be written, allowed: another one by --column NAME")
    cells = [_cells(each, source) for each in given]
    read = read_parquet(source, Wanted(cells, description.dtype, blanks=blanks), title)
    features = Features(description, given)
    field = pa.field(column, pa.from_numpy_dtype(description.dtype))
    # Compared with what it was before the file gets its name.
    with atomic_path(target) as temporary, source, closing(read) as batches, temporary.open("wb") as file:
        ahead = read_ahead(predictions(model, features.of(batches)))
        with closing(ahead) as pieces, pyarrow.parquet.ParquetWriter(file, source.schema.append(field)) as writer:
            predicted = _Pieces(pieces, source, blanks)
            for batch in filter(len, source.batches()):
                writer.write_batch(batch.append_column(field, _as_arrow(predicted.take(batch.num_rows))))
            predicted.finish()
    not_finite = predicted.blank - features.blank
    lacking = features.lacking(predicted.count)
    return Predicted(predicted.count, predicted.blank, not_finite, features.bad(), features.unseen(), lacking)


class _Pieces:
    """The predictions, in pieces of other lengths than they come in."""

    def __init__(self, pieces: Iterator[Array], source: ParquetFile, blanks: bool) -> None:
        self.count, self.blank = 0, 0
        self._blanks = blanks
        self._pieces, self._source = pieces, source
        self._ready: list[Array] = []

    def take(self, rows: int) -> Array:
        """Return the predictions [rows] of the next rows; raises TableError for one that is not finite, unless it is blank."""
        missing = rows - sum(map(len, self._ready))
        while missing > 0:
            piece = next(self._pieces, None)
            if piece is None:
                raise TableError(f"{self._source.path}: found fewer rows when it was read again; run again")
            self._ready.append(piece)
            missing -= len(piece)
        ready = np.concatenate(self._ready)
        taken, self._ready = ready[:rows], [ready[rows:]]
        not_finite = np.flatnonzero(~np.isfinite(taken)).tolist()
        self.blank += len(not_finite)
        for row in not_finite if not self._blanks else ():
            where = f"{self._source.path}: row {self.count + row + 1}"
            raise TableError(f"{where}: found features whose prediction is {taken[row]}, allowed: a finite {taken.dtype}")
        self.count += rows
        return taken

    def finish(self) -> None:
        """Take what is left, which is nothing but the faults of rows that were not given."""
        deque(self._pieces, maxlen=0)


def _cells(column: Column, source: ParquetFile) -> Cells:
    """Return the cells of a model's column: dates are as in ISO 8601, whatever the format was at the training."""
    has_dates = isinstance(column, Date) and source.kind(column.name) == "date"
    cells = model_cells(column, column.of_datetimes if has_dates else column)
    value = value_reader(source.type(column.name))
    return cells if cells.parse is None or value is None else cells._replace(parse=partial(_parse_values, column, value))


def _parse_values(column: Column, value: Callable[[str], Any], texts: pa.Array) -> Parsed:
    """Return what numbers and truth values say, by the texts that the column has for them, of whose names one may be 1.0."""
    coded = texts.dictionary_encode()
    known = [None if text is None else column.text(value(text)) for text in coded.dictionary.to_pylist()]
    return column.parse(pa.array(known, pa.string()).take(coded.indices))


def _as_arrow(numbers: Array) -> pa.Array:
    """Return the numbers, null for those that are not finite."""
    # Not pa.array, which imports pandas.
    array = pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])
    return pyarrow.compute.if_else(pyarrow.compute.is_finite(array), array, pa.scalar(None, array.type))
