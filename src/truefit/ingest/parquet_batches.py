"""A Parquet file's cells in batches of rows: as its numbers, and by their texts where that takes a look at them."""

from collections.abc import Iterator
from functools import partial

import pyarrow as pa

from truefit.core.errors import TableError
from truefit.ingest.cells import Batch, Batches, Block, OnRead, Wanted
from truefit.ingest.csv_batches import first_that_reads, text_batches, typed_batches
from truefit.ingest.csv_faults import CellTexts, Faults
from truefit.ingest.parquet_cells import as_numbers, as_texts, is_number
from truefit.ingest.parquet_file import ParquetFile


def read_parquet(source: ParquetFile, wanted: Wanted, title: str) -> Batches:
    """Give all rows, in their order, with the columns that are wanted.

    Memory is bounded by a batch. Raises TableError, naming file, row and column, for a file that cannot be used; what was
    given before counts for nothing then.
    """
    yield from first_that_reads((_numbers, partial(text_batches, _blocks)), source, wanted, title)


def _numbers(source: ParquetFile, wanted: Wanted, on_read: OnRead) -> Iterator[Batch]:
    return typed_batches(_columns(source, wanted.types, on_read), source, wanted)


def _columns(source: ParquetFile, types: dict[str, pa.DataType], on_read: OnRead) -> Iterator[dict[str, pa.Array]]:
    """Give the columns by name, those whose type in the file is a number's in float64, unless `types` has text for it."""
    for batch in _batches(source, list(types), on_read):
        yield {
            name: as_numbers(column) if pa.types.is_floating(types[name]) and is_number(column.type) else as_texts(column)
            for name, column in zip(types, batch.columns, strict=True)
        }


def _blocks(source: ParquetFile, names: list[str], _: Faults, on_read: OnRead) -> Iterator[Block]:
    rows = 1
    for batch in _batches(source, names, on_read):
        columns = map(as_texts, batch.columns)
        cells = {name: CellTexts(column, partial(_text, column), []) for name, column in zip(names, columns, strict=True)}
        yield Block(cells, partial(int.__add__, rows), batch.num_rows)
        rows += batch.num_rows


def _text(column: pa.Array, place: int) -> str:
    return column[place].as_py() or ""


def _batches(source: ParquetFile, names: list[str], on_read: OnRead) -> Iterator[pa.RecordBatch]:
    """Give the batches that have rows, and tell how many of the file's bytes each is, on average."""
    rows = 0
    for batch in source.batches(names):
        if batch.num_rows:
            on_read(source.size * (rows + batch.num_rows) // source.rows - source.size * rows // source.rows)
            rows += batch.num_rows
            yield batch
    if not rows and not source.may_be_empty:
        raise TableError(f"{source.path}: found no rows, allowed: at least one")
