"""A Parquet file: its columns' own types, and its rows in batches that are bounded in bytes, whatever its row groups."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from truefit.core.errors import TableError
from truefit.core.files import sha256
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.parquet_cells import ALLOWED_TYPES, as_texts, is_number, kind_of
from truefit.ingest.source import ADVICE, Advice, SourceFile

BATCH_BYTES, BATCH_ROWS = 1 << 24, 1 << 16  # that are in memory at a time, about
CELL_BYTES = 8  # of a number
UNPACKED = 4  # times the bytes of the file, which what is no number may take in memory
READ_BYTES, LEAST_READ = 1 << 22, 1 << 14  # of all columns' bytes at a time, and of one's at least
_ROW_NAMES = re.compile("__index_level_[0-9]+__")  # of pandas, for row names that have no name themselves


class ParquetFile(SourceFile):
    """A Parquet file, of whose format settings `missing` alone counts; rows are counted from 1.

    Raises TableError, naming the file, for what cannot be read, here and later.
    """

    unit = "row"

    def __init__(self, path: Path, form: FormatSettings, advice: Advice = ADVICE, *, hashed: bool = False) -> None:
        # What advises a format would have no effect.
        super().__init__(path, FormatSettings(missing=_plain(form)), advice._replace(format=""), hashed=hashed)
        with self._opened() as file:
            self.schema: pa.Schema = file.schema_arrow
            self.rows: int = file.metadata.num_rows
        names = self.schema.names
        self.header = ["" if _ROW_NAMES.fullmatch(name) else name.strip() for name in names]
        self.index = _index(self.schema)
        self._places = {name: place for place, name in reversed([*enumerate(self.header)])}
        self._names = dict(zip(reversed(self.header), reversed(names), strict=True))

    def kind(self, name: str) -> str:
        """Return the kind that a column is by its type; of text that is number, until prepare.columns names another."""
        return kind_of(self.type(name)) or "number"

    def type(self, name: str) -> pa.DataType:
        """Return a column's type."""
        return self.schema.field(self._places[name]).type

    def require_types(self, used: Collection[str]) -> None:
        """Raise TableError for the first column among those `used` whose type none of the kinds can be."""
        for name in self.header:
            if name in used and name and kind_of(kind := self.type(name)) is None:
                way_out = f"or the column left out by {self.advice.exclude}"
                raise TableError(f"{self.path}: column {name!r}: found the type {kind}, allowed: {ALLOWED_TYPES}, {way_out}")

    def batches(self, names: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Give the rows, of the columns with these names in their order, each of them once, or of all as they are."""
        if self.hashed and not self.sha256:
            with self._errors():
                self.sha256 = sha256(self.path)
        raw = None if names is None else [self._names[name] for name in names]
        with self._opened() as file:
            read = file.iter_batches(self._batch_rows(names), columns=raw)
            while True:
                with self._errors():
                    batch = next(read, None)
                if batch is None:
                    break
                if names is not None and raw is not None:
                    batch = batch.select(raw)  # of two columns `a` and `a.b`, both come for the first
                    self._require_valid(names, batch)
                yield batch

    def _require_valid(self, names: list[str], batch: pa.RecordBatch) -> None:
        for name, column in zip(names, batch.columns, strict=True):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                allowed = f"text in UTF-8, and a whole file, or the column left out by {self.advice.exclude}"
                raise TableError(f"{self.path}: column {name!r}: found damaged values ({error}), allowed: {allowed}") from None

    def cells(self, name: str) -> Iterator[tuple[int, str]]:
        """Give a column's cells as texts, each with the number of its row; those that are null are left out."""
        row = 0
        for batch in self.batches([name]):
            for row, text in enumerate(as_texts(batch.column(0)).to_pylist(), row + 1):  # noqa: B020
                if text is not None:
                    yield row, text

    @contextmanager
    def _opened(self) -> Iterator[pyarrow.parquet.ParquetFile]:
        with self._errors():
            # By Arrow itself, so that none of its threads asks for Python; the name in bytes, since it need be no UTF-8.
            stream = pa.OSFile(os.fsencode(self.path))
        with stream:
            with self._errors():
                metadata = pyarrow.parquet.read_metadata(stream)
                buffer = max(LEAST_READ, READ_BYTES // max(1, metadata.num_columns))
                file = pyarrow.parquet.ParquetFile(stream, metadata=metadata, buffer_size=buffer, pre_buffer=False)
            yield file

    def _batch_rows(self, names: list[str] | None) -> int:
        """Return how many rows of these columns, or of all, to take at a time."""
        # Not by what the file says of its columns: pyarrow aborts the process where that is damaged.
        types = self.schema.types if names is None else [self.type(name) for name in names]
        size = CELL_BYTES * len(types)
        if not all(map(is_number, types)):
            size += UNPACKED * self.size // max(1, self.rows)
        return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size)))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            allowed = "a whole Parquet file, without a password"
            raise TableError(f"{self.path}: found Parquet that cannot be read ({reason}), allowed: {allowed}") from None


def _index(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that pandas wrote as its index; none where the file does not say it so."""
    try:
        columns = (schema.pandas_metadata or {})["index_columns"]
    except (ValueError, LookupError, TypeError):
        return []
    # Another index is that of a range, which is no column.
    return [name.strip() for name in columns if isinstance(name, str)] if isinstance(columns, list) else []


def _plain(form: FormatSettings) -> list[str]:
    """Return the texts that stand for a missing value, the numbers among them as others write them too."""
    return [*dict.fromkeys([*form.missing, *map(form.plain, filter(re.compile(form.number).fullmatch, form.missing))])]
