"""`truefit predict`: a CSV -> the same CSV with one more column; its text is cut where rows end, and never taken apart."""

from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute
from torch import nn

from truefit.core.errors import TableError
from truefit.core.files import atomic_path
from truefit.core.text import one_line
from truefit.data.batches import read_ahead
from truefit.ingest.csv_batches import read_batches
from truefit.ingest.csv_check import missing_column, read_header
from truefit.ingest.csv_file import CsvFile, Separator
from truefit.ingest.csv_text import BYTES, LineBreakError, LineTexts, RowTexts
from truefit.model.files import ModelDescription
from truefit.model.serving import Array, predictions


def predict(
    model: nn.Module,
    description: ModelDescription,
    source: Path,
    target: Path,
    separator: Separator = ",",
    column: str = "prediction",
) -> int:
    """Write the CSV `source` with the predictions in a `column` behind its own to `target`; return the number of its rows.

    Raises TableError for a CSV, or a name of the column, that cannot be used, and OSError where `target` cannot be written;
    what was there stays then.
    """
    csv = CsvFile(source, separator, "--separator", "a model trained with prepare.dtype: float64")
    if target.exists() and target.samefile(source):
        raise TableError(f"{target}: is the CSV to be read, allowed: another file")
    with csv:
        header = set(read_header(csv))
        for name in description.features:
            if name not in header:
                raise missing_column(csv, name, "a feature of the model")
        if column in header:
            where = f"{csv.path}: line {csv.header_line}, column '{one_line(column)}'"
            raise TableError(f"{where}: found the name of the column to be written, allowed: another one by --column NAME")
    heading = _cell(column, separator)
    # Compared with what it was before the file gets its name.
    with atomic_path(target) as temporary, csv, temporary.open("wb") as file:
        try:
            return _write(csv, LineTexts, model, description, file, heading)
        except LineBreakError:
            file.seek(0)
            file.truncate()
            return _write(csv, RowTexts, model, description, file, heading)


def _cell(name: str, separator: str) -> bytes:
    """Return the name of a column as a cell, quoted where need be; raises TableError where `prepare` would refuse it."""
    try:
        content = name.encode()
    except UnicodeEncodeError:
        raise TableError(f"--column: found '{one_line(name)}', allowed: text in UTF-8") from None
    if not name.strip():
        raise TableError(f"--column: found '{one_line(name)}', allowed: a name")
    if any(character in name for character in (separator, '"', "\r", "\n")):
        return b'"' + content.replace(b'"', b'""') + b'"'
    return content


def _write(
    csv: CsvFile,
    texts: type[LineTexts] | type[RowTexts],
    model: nn.Module,
    description: ModelDescription,
    file: IO[bytes],
    heading: bytes,
) -> int:
    separator = pa.scalar(csv.separator.encode(), BYTES)
    count, not_finite = 0, None
    read = read_batches(csv, description.features, description.dtype, None, "predict")
    with closing(read) as batches, csv.content() as stream:
        text = texts(csv, stream)
        file.write(text.mark)
        _append(file, text.take(1), pa.array([heading], BYTES), separator)
        for predicted in read_ahead(predictions(model, (batch.values for batch in batches))):
            if not_finite is None and not np.isfinite(predicted).all():
                index = int(np.argmin(np.isfinite(predicted)))
                not_finite = count + index, predicted[index]
            count += len(predicted)
            while len(predicted):
                rows = text.take(len(predicted))
                _append(file, rows, _number_texts(predicted[: len(rows)]), separator)
                predicted = predicted[len(rows) :]
        file.write(text.rest())
    if not_finite:  # told when there are no faults
        index, found = not_finite
        line, _ = next(islice(csv.rows(), 1 + index, None))
        where = f"{csv.path}: line {line}"
        raise TableError(f"{where}: found features whose prediction is {found}, allowed: a finite {found.dtype}")
    return count


def _append(file: IO[bytes], rows: pa.Array, cells: pa.Array, separator: pa.Scalar) -> None:
    joined = pyarrow.compute.binary_join_element_wise(rows, cells, separator)
    _, offsets, text = joined.buffers()
    file.write(memoryview(text)[: np.frombuffer(offsets, np.int64)[len(joined)]])


def _number_texts(numbers: Array) -> pa.Array:
    """Return the shortest texts [C] that read back as the numbers [C], by way of float64 too, as prepare reads float32."""
    array = pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])
    texts = array.cast(pa.string())
    # Some few numbers' shortest texts lie so close to the middle of two float32 that float64 rounds them onto it.
    if (np.from_dlpack(texts.cast(pa.float64())).astype(numbers.dtype) != numbers).any():
        texts = pa.array([repr(float(number)) for number in numbers], pa.string())
    return texts.cast(BYTES)
