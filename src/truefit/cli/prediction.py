"""`truefit predict`: a CSV -> the same CSV with one more column; its text is cut where rows end, and never taken apart."""

import codecs
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pydantic import ValidationError
from torch import nn

from truefit.cli.predicted import Features, Predicted, given_columns, model_cells
from truefit.cli.prediction_parquet import SUFFIX, predict_parquet
from truefit.core.errors import TableError
from truefit.core.files import atomic_path
from truefit.core.text import one_line
from truefit.data.ahead import read_ahead
from truefit.ingest.cells import Wanted
from truefit.ingest.containers import is_parquet
from truefit.ingest.csv_batches import read_batches
from truefit.ingest.csv_check import read_header, require_usable
from truefit.ingest.csv_file import CsvFile
from truefit.ingest.csv_format import FormatSettings, Separator
from truefit.ingest.csv_text import BYTES, LineBreakError, LineTexts, RowTexts
from truefit.ingest.parquet_file import ParquetFile
from truefit.ingest.source import Advice
from truefit.model.files import ModelDescription
from truefit.model.serving import Array, predictions

COLUMN = "prediction"  # by default
TITLE = "predict"
_TRAINED = {way: f"a model trained with {getattr(Advice(), way)}" for way in ("header", "encoding", "wider")}
ADVICE = Advice(separator="--separator", kind="", **_TRAINED)


def predict(
    model: nn.Module,
    description: ModelDescription,
    source: Path,
    target: Path,
    separator: Separator | None = None,
    column: str = COLUMN,
    blanks: bool = False,
    part: bool = False,
) -> Predicted:
    """Write the CSV `source` with the predictions in a `column` behind its own to `target`.

    It is read by the format of the CSV that the model was trained on, but for another `separator`. With `blanks`, a row with
    a cell that is refused, or whose prediction is not finite, gets an empty cell. Of Parquet, Parquet
    is written. A `part` of several may be without rows, and shows no bar.

    Raises TableError for a CSV, or a name of the column, that cannot be used, and OSError where `target` cannot be written;
    what was there stays then.
    """
    if is_parquet(source):
        if separator:
            raise TableError(f"--separator: found {separator!r}, allowed: none for the Parquet file {source}")
        parquet = ParquetFile(source, _format(description, None), ADVICE)
        parquet.may_be_empty = part
        return predict_parquet(model, description, parquet, target, column, blanks, "" if part else TITLE)
    csv = CsvFile(source, _format(description, separator), ADVICE)
    csv.may_be_empty = part
    if target.suffix == SUFFIX:
        raise TableError(f"{target}: is to be written from the CSV {source}, allowed: a name that does not end in {SUFFIX}")
    if target.exists() and target.samefile(source):
        raise TableError(f"{target}: is the CSV to be read, allowed: another file")
    with csv:
        header = set(read_header(csv))
        given = given_columns(description, csv)
        require_usable(csv, [column.name for column in given])
        if not csv.format.header and column != COLUMN:
            raise TableError(f"--column: found '{one_line(column)}', allowed: none for a CSV without a header")
        if column.strip() in header - {""}:
            where = f"{csv.path}: line {csv.header_line}, column '{one_line(column)}'"
            raise TableError(f"{where}: found the name of the column to be written, allowed: another one by --column NAME")
    heading, title = _cell(column, csv.format), "" if part else TITLE
    # Compared with what it was before the file gets its name.
    with atomic_path(target) as temporary, csv, temporary.open("wb") as file:
        if csv.format.keeps_ascii and not csv.format.comment:
            try:
                return _write(csv, LineTexts, model, description, file, heading, blanks, title)
            except LineBreakError:
                file.seek(0)
                file.truncate()
        return _write(csv, RowTexts, model, description, file, heading, blanks, title)


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
    title: str,
) -> Predicted:
    separator = pa.scalar(csv.format.separator.encode(), BYTES)
    if not csv.format.keeps_ascii:
        file = _Encoded(file, csv.format.encoding)  # type: ignore[assignment]
    count, blank, not_finite = 0, 0, None
    given = given_columns(description, csv)
    cells = [model_cells(column, column) for column in given]
    read = read_batches(csv, Wanted(cells, description.dtype, blanks=blanks), title)
    features, empty = Features(description, given), '""' if csv.format.separator == " " else ""
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
    return Predicted(count, blank, blank - features.blank, features.bad(), features.unseen(), features.lacking(count))


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
