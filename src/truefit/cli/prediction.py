"""`truefit predict`: a CSV -> the same CSV with one more column; its text is cut where rows end, and never taken apart."""

import codecs
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pydantic import ValidationError
from torch import nn

from truefit.core.errors import TableError
from truefit.core.files import atomic_path
from truefit.core.text import one_line
from truefit.data.batches import read_ahead
from truefit.ingest.csv_batches import Batch, Wanted, cells_of, read_batches
from truefit.ingest.csv_check import missing_column, read_header, require_usable
from truefit.ingest.csv_faults import MOST_COLUMNS
from truefit.ingest.csv_file import Advice, CsvFile
from truefit.ingest.csv_format import FormatSettings, Separator
from truefit.ingest.csv_text import BYTES, LineBreakError, LineTexts, RowTexts
from truefit.model.files import ModelDescription
from truefit.model.serving import Array, predictions

COLUMN = "prediction"  # by default
_TRAINED = {way: f"a model trained with {getattr(Advice(), way)}" for way in ("header", "encoding", "wider")}
ADVICE = Advice(separator="--separator", kind="", **_TRAINED)


class Predicted(NamedTuple):
    """What was written: the number of `rows`, and of those that have no prediction, which are `blank`.

    `not_finite` of these had no bad cell. By the names of columns, `bad` has the number of bad cells, and `unseen` that of
    values that the model does not know.
    """

    rows: int
    blank: int
    not_finite: int
    bad: dict[str, int]
    unseen: dict[str, int]

    def warnings(self) -> list[str]:
        """Return what a user should know of it, a line each."""
        warnings = []
        if self.unseen:
            warnings.append(f"found values that the model does not know, and takes for '(other)', in {_listed(self.unseen)}")
        if self.blank:
            causes = [f"bad cells in {_listed(self.bad)}"] if self.bad else []
            causes += [f"{self.not_finite} whose prediction is not finite"] if self.not_finite else []
            warnings.append(f"left {self.blank} of {self.rows} rows without a prediction: {'; '.join(causes)}")
        return warnings


def predict(
    model: nn.Module,
    description: ModelDescription,
    source: Path,
    target: Path,
    separator: Separator | None = None,
    column: str = COLUMN,
    blanks: bool = False,
) -> Predicted:
    """Write the CSV `source` with the predictions in a `column` behind its own to `target`.

    It is read by the format of the CSV that the model was trained on, but for another `separator`. With `blanks`, a row with
    a cell that is refused, or whose prediction is not finite, gets an empty cell.

    Raises TableError for a CSV, or a name of the column, that cannot be used, and OSError where `target` cannot be written;
    what was there stays then.
    """
    csv = CsvFile(source, _format(description, separator), ADVICE)
    if target.exists() and target.samefile(source):
        raise TableError(f"{target}: is the CSV to be read, allowed: another file")
    with csv:
        header = set(read_header(csv))
        names = [column.name for column in description.columns]
        for name in names:
            if name not in header:
                raise missing_column(csv, name, "a feature of the model")
        require_usable(csv, names)
        if not csv.format.header and column != COLUMN:
            raise TableError(f"--column: found '{one_line(column)}', allowed: none for a CSV without a header")
        if column.strip() in header - {""}:
            where = f"{csv.path}: line {csv.header_line}, column '{one_line(column)}'"
            raise TableError(f"{where}: found the name of the column to be written, allowed: another one by --column NAME")
    heading = _cell(column, csv.format)
    # Compared with what it was before the file gets its name.
    with atomic_path(target) as temporary, csv, temporary.open("wb") as file:
        if csv.format.keeps_ascii and not csv.format.comment:
            try:
                return _write(csv, LineTexts, model, description, file, heading, blanks)
            except LineBreakError:
                file.seek(0)
                file.truncate()
        return _write(csv, RowTexts, model, description, file, heading, blanks)


def _listed(counts: dict[str, int]) -> str:
    shown = [f"'{one_line(name)}' {count}" for name, count in list(counts.items())[:MOST_COLUMNS]]
    more = f" and {len(counts) - len(shown)} more columns" if len(counts) > len(shown) else ""
    return ", ".join(shown) + more


def _format(description: ModelDescription, separator: Separator | None) -> FormatSettings:
    """Return how the CSV is written; raises TableError for a separator that does not go with the model's format."""
    try:
        return FormatSettings.model_validate(description.format | ({"separator": separator} if separator else {}))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]["msg"]
        raise TableError(
            f"--separator {separator!r}: beside the format of the CSV that the model was trained on, {fault}"
        ) from None


def _cell(name: str, form: FormatSettings) -> bytes:
    """Return the name of a column as a cell, quoted where need be; raises TableError where `prepare` would refuse it."""
    try:
        name.encode(form.encoding)
    except UnicodeEncodeError:
        raise TableError(f"--column: found '{one_line(name)}', allowed: text in {form.encoding}") from None
    if not name.strip():
        raise TableError(f"--column: found '{one_line(name)}', allowed: a name")
    # A run of blanks takes in tabs.
    if any(character in name for character in (*form.separator.replace(" ", " \t"), '"', "\r", "\n")):
        name = '"' + name.replace('"', '""') + '"'
    return name.encode(form.row_encoding)


def _write(
    csv: CsvFile,
    texts: type[LineTexts] | type[RowTexts],
    model: nn.Module,
    description: ModelDescription,
    file: IO[bytes],
    heading: bytes,
    blanks: bool,
) -> Predicted:
    separator = pa.scalar(csv.format.separator.encode(), BYTES)
    if not csv.format.keeps_ascii:
        file = _Encoded(file, csv.format.encoding)  # type: ignore[assignment]
    count, blank, not_finite = 0, 0, None
    cells = [
        cells_of(column, column, column.fill is not None, "a model trained with prepare.missing: {features: fill}")
        for column in description.columns
    ]
    read = read_batches(csv, Wanted(cells, description.dtype, blanks=blanks), "predict")
    features, empty = _Features(description), '""' if csv.format.separator == " " else ""
    with closing(read) as batches, csv.content() as stream:
        text = texts(csv, stream)
        file.write(text.mark)
        if csv.format.header:
            _append(file, text.take(1), pa.array([heading], BYTES), separator)
        for predicted in read_ahead(predictions(model, features.of(batches))):
            finite = np.isfinite(predicted)
            if not finite.all():
                index = int(np.argmin(finite))
                not_finite = not_finite or (count + index, predicted[index])
                blank += len(finite) - int(finite.sum())
            count += len(predicted)
            while len(predicted):
                rows = text.take(len(predicted))
                _append(file, rows, _number_texts(predicted[: len(rows)], csv.format.decimal, empty), separator)
                predicted = predicted[len(rows) :]
        file.write(text.rest())
    if not_finite and not blanks:  # told when there are no faults
        index, found = not_finite
        line, _ = next(islice(csv.data_rows(), index, None))
        where = f"{csv.path}: line {line}"
        raise TableError(f"{where}: found features whose prediction is {found}, allowed: a finite {found.dtype}")
    return Predicted(count, blank, blank - features.blank, features.bad(), features.unseen())


class _Features:
    """Makes a model's features of batches, nan in the rows that are bad, and counts cells of these and unseen values."""

    def __init__(self, description: ModelDescription) -> None:
        self.blank = 0  # rows so far
        self._encoding = description.encoding
        self._names = [column.name for column in description.columns]
        places = accumulate((column.stored for column in description.columns), initial=0)
        self._open = [
            (number, column, at)
            for number, (column, at) in enumerate(zip(description.columns, places, strict=False))
            if column.takes_any
        ]
        self._bad, self._unseen = np.zeros((2, len(self._names)), np.int64)

    def of(self, batches: Iterable[Batch]) -> Iterator[Array]:
        """Yield the features [B, F] of each batch."""
        for batch in batches:
            for number, column, at in self._open:
                self._unseen[number] += column.unseen(batch.values[:, at : at + column.stored])
            features = self._encoding.features(batch.values)
            if len(batch.bad):
                bad_rows = batch.bad.any(axis=1)
                features[bad_rows] = np.nan
                self._bad += batch.bad.sum(axis=0)
                self.blank += int(bad_rows.sum())
            yield features

    def bad(self) -> dict[str, int]:
        """Return the number of bad cells by the names of their columns."""
        return self._by_name(self._bad)

    def unseen(self) -> dict[str, int]:
        """Return the number of values that the model does not know, likewise."""
        return self._by_name(self._unseen)

    def _by_name(self, counts: Array) -> dict[str, int]:
        return {name: count for name, count in zip(self._names, counts.tolist(), strict=True) if count}


class _Encoded:
    """A file whose text is written in UTF-8, and stands there in another encoding, its byte order mark first if it has one."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file = file
        self._encoder = codecs.getincrementalencoder(encoding)("surrogateescape")

    def write(self, content: bytes | memoryview) -> None:
        self._file.write(self._encoder.encode(bytes(content).decode(errors="surrogateescape")))


def _append(file: IO[bytes], rows: pa.Array, cells: pa.Array, separator: pa.Scalar) -> None:
    joined = pyarrow.compute.binary_join_element_wise(rows, cells, separator)
    _, offsets, text = joined.buffers()
    file.write(memoryview(text)[: np.frombuffer(offsets, np.int64)[len(joined)]])


def _number_texts(numbers: Array, decimal: str = ".", empty: str = "") -> pa.Array:
    """Return the shortest texts [C] that read back as the numbers [C], by way of float64 too, as prepare reads float32.

    What is not finite is an `empty` text.
    """
    finite = np.isfinite(numbers)
    if not finite.all():
        texts = _number_texts(np.where(finite, numbers, 0), decimal)
        return pyarrow.compute.if_else(pa.array(finite), texts, pa.scalar(empty.encode(), BYTES))
    array = pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])
    texts = array.cast(pa.string())
    # Some few numbers' shortest texts lie so close to the middle of two float32 that float64 rounds them onto it.
    if (np.from_dlpack(texts.cast(pa.float64())).astype(numbers.dtype) != numbers).any():
        texts = pa.array([repr(float(number)) for number in numbers], pa.string())
    return pyarrow.compute.replace_substring(texts, ".", decimal).cast(BYTES)
