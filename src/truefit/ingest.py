"""CSV -> validated, split table: in one pass over the CSV where pyarrow's fast reader takes it, else in several.

Reads the CSV at `prepare.csv`; writes the arrays and the description that table.py defines. Guarantees that every value is
the finite number that the CSV says, that each split keeps the CSV's row order, the same bytes for the same CSV and settings,
and memory bounded by a chunk of rows: the rows wait in a staging file until their number, and with it the size of each
split, is known. What the fast reader cannot take, or might take otherwise than it was meant, csv_check.py reads.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
from numpy.typing import NDArray
from pydantic import Field, model_validator
from tqdm import tqdm

from truefit.config import Settings, impossible
from truefit.csv_check import EXACT, CsvFile, See, Separator, checked_rows, read_header
from truefit.errors import TableError
from truefit.files import atomic_path, write_json
from truefit.seeds import numpy_generator
from truefit.table import SPLITS, TABLE_JSON, ArrayWriter, CsvSource, Dtype, Split, Table

# Part of the split's definition: another length draws other rows from the same seed.
CHUNK_ROWS = 65_536
# What pyarrow parses at a time; a row that is longer is left to csv_check.py.
BLOCK_BYTES = 1 << 20
_FLOAT64 = pa.float64()
_LONG_INTEGER = r"^[ \t]*[+-]?[0-9]{16,}[ \t]*$"


class SplitSettings(Settings):
    """Which rows go where: exact fractions drawn with a seed, or a column of the CSV that names each row's split."""

    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    seed: int = Field(42, ge=0)
    column: str | None = None

    @model_validator(mode="after")
    def _fractions_make_a_whole(self) -> Self:
        rest = 1 - self.validation - self.test
        if rest < 1e-9:
            below = round(1 - self.validation, 9)
            raise impossible("test", self.test, f"less than {below}, so that the three fractions add up to 1")
        if abs(self.train - rest) > 1e-9:
            raise impossible("train", self.train, f"{round(rest, 9)}, so that the three fractions add up to 1")
        return self


class PrepareSettings(Settings):
    """Section `prepare`: which CSV, which of its columns, and how they are split and stored."""

    csv: str = Field("data/synthetic.csv", min_length=1)
    separator: Separator = ","
    features: list[str] | None = Field(None, min_length=1)
    target: str | None = None
    split: SplitSettings = SplitSettings()
    dtype: Dtype = "float32"

    @model_validator(mode="after")
    def _each_column_has_one_role(self) -> Self:
        if self.target is not None and self.target == self.split.column:
            raise impossible("target", self.target, "a column other than prepare.split.column")
        taken = {self.target, self.split.column}
        for name in self.features or []:
            if name in taken:
                raise impossible("features", name, "each column once, neither the target nor the split column")
            taken.add(name)
        return self


def write_table(settings: PrepareSettings, folder: Path) -> Table:
    """Prepare the table of `settings.csv` in `folder` and return its description.

    Raises TableError, naming file, line and column, for a CSV that cannot be used.
    """
    path = Path(settings.csv)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as rows, TemporaryFile(dir=folder) as labels:
        with CsvFile(path, settings.separator) as source:
            features, target = choose_columns(source, read_header(source), settings)
            columns = [*features, target]
            digest, total = _stage(source, columns, settings, rows, labels)
        sizes = _split_sizes(path, total, labels, settings.split)
        chunks = _labelled(rows, labels, sizes, len(columns), settings)
        mean, std, digests = _write_splits(path, folder, chunks, sizes, columns, settings.dtype)
    table = Table(
        csv=CsvSource(path=settings.csv, sha256=digest),
        features=features,
        target=target,
        dtype=settings.dtype,
        rows=sizes,
        mean=mean,
        std=std,
        sha256=digests,
    )
    write_json(folder / TABLE_JSON, table.model_dump())
    return table


def choose_columns(source: CsvFile, header: list[str], settings: PrepareSettings) -> tuple[list[str], str]:
    """Return the features' names and the target's: those of the settings, or by default the last column and all others.

    Raises TableError when the CSV lacks a column that the settings name, or has no column left for a feature.
    """
    split = settings.split.column
    candidates = [name for name in header if name != split]
    named = [("features", name) for name in settings.features or []] + [
        ("target", settings.target),
        ("split.column", split),
    ]
    where = f"{source.path}: line {source.header_line}"
    names = ", ".join(name if name.isprintable() else repr(name) for name in header)
    remark = source.other_separator(header)
    for key, name in named:
        if name is not None and name not in header:
            raise TableError(f"{where}: found no column {name!r} (prepare.{key}), allowed: {names}{remark}")
    target = settings.target or (candidates[-1] if candidates else "")
    features = settings.features or [name for name in candidates if name != target]
    if target in features:
        raise TableError(
            f"{where}: found the last column {target!r}, the target by default, among prepare.features, "
            "allowed: prepare.target set to another column"
        )
    if not features:
        raise TableError(f"{where}: found the columns {names}, allowed: a target and at least one feature{remark}")
    return features, target


def _stage(
    source: CsvFile, columns: list[str], settings: PrepareSettings, rows: IO[bytes], labels: IO[bytes]
) -> tuple[str, int]:
    """Append the CSV's values to `rows` and each row's position in SPLITS, where a column says it, to `labels`, as bytes.

    Return the CSV's digest and its number of rows.
    """
    with tqdm(total=source.size, desc="prepare", unit="B", unit_scale=True, disable=None) as bar:

        def append(read: Callable[..., Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]]) -> tuple[str, int]:
            digest, total = hashlib.sha256(), 0

            def see(content: bytes) -> None:
                digest.update(content)
                bar.update(len(content))

            for values, codes in read(source, columns, settings, see):
                rows.write(values.data)
                labels.write(codes.data)
                total += len(values)
            if not total:
                raise pa.ArrowInvalid("found no rows")
            return digest.hexdigest(), total

        # Large numbers are rare, and to tell them from integers that float64 rounds takes their text.
        for read in (_fast_batches, partial(_fast_batches, number=pa.string())):
            try:
                return append(read)
            except pa.ArrowInvalid:
                for staged in (rows, labels):
                    staged.seek(0)
                    staged.truncate()
                bar.reset()
        return append(_slow_batches)


def _fast_batches(
    source: CsvFile, columns: list[str], settings: PrepareSettings, see: See, number: pa.DataType = _FLOAT64
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Give the values [B, columns] and, with a split column, the splits [B] of so many rows at a time, as pyarrow reads them.

    Raises pa.ArrowInvalid when there is something that must be looked at cell by cell.
    """
    split = settings.split.column
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
        for batch in batches:
            values = _matrix(batch, columns, settings.dtype)
            # Not a number, not finite, or perhaps an integer that was rounded.
            limit = EXACT if number == _FLOAT64 else np.inf
            if not (values.min(initial=0) > -limit and values.max(initial=0) < limit):
                raise pa.ArrowInvalid("found a value to be looked at")
            yield values, np.empty(0, np.uint8) if split is None else _codes(batch.column(split))
    if quotes:
        # pyarrow forgives a quote that is left open, and takes the rows behind it for text.
        deque(source.rows(), maxlen=0)


def _slow_batches(
    source: CsvFile, columns: list[str], settings: PrepareSettings, see: See
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Give the same as `_fast_batches`, read cell by cell; raises TableError when there are faults."""
    rows = checked_rows(source, columns, settings.dtype, settings.split.column, see)
    while batch := list(islice(rows, 4096)):
        codes = [SPLITS.index(split) for _, split in batch if split]
        yield np.array([values for values, _ in batch], settings.dtype), np.array(codes, np.uint8)


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


def _split_sizes(path: Path, total: int, labels: IO[bytes], split: SplitSettings) -> dict[Split, int]:
    """Return the number of rows of each split: counted in `labels`, or the fractions of `total` by largest remainder.

    Raises TableError when a split is left empty.
    """
    if split.column is not None:
        sizes = _count(labels)
        where = f"column {split.column!r}: found no row with"
    else:
        shares = np.array([split.train, split.validation, split.test]) * total
        sizes = np.floor(shares + 1e-9).astype(np.int64)
        for index in np.argsort(sizes - shares, kind="stable")[: total - sizes.sum()]:
            sizes[index] += 1
        where = f"prepare.split: found too few rows, {total}, for"
    for name, size in zip(SPLITS, sizes, strict=True):
        if size == 0:
            raise TableError(f"{path}: {where} {name!r}, allowed: at least one row in each split")
    return {"train": int(sizes[0]), "validation": int(sizes[1]), "test": int(sizes[2])}


def _count(labels: IO[bytes]) -> NDArray[np.int64]:
    """Return how often each split stands in `labels`."""
    sizes = np.zeros(len(SPLITS), np.int64)
    labels.seek(0)
    while chunk := labels.read(CHUNK_ROWS):
        sizes += np.bincount(np.frombuffer(chunk, np.uint8), minlength=len(SPLITS))
    return sizes


def _labelled(
    rows: IO[bytes], labels: IO[bytes], sizes: dict[Split, int], width: int, settings: PrepareSettings
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Give the staged rows [C, width] in order, each chunk with its rows' splits [C].

    Without a split column the splits are drawn, so that every partition into `sizes` is equally likely: how many of a
    chunk's rows go to each split is a draw without replacement from what is left (multivariate hypergeometric), and
    which rows they are is a permutation. Selection sampling: Knuth, TAOCP volume 2, 3.4.2, algorithm S, by the chunk.
    """
    dtype = np.dtype(settings.dtype)
    left = np.array(list(sizes.values()), np.int64)
    rows.seek(0)
    labels.seek(0)
    chunk = 0
    while content := rows.read(CHUNK_ROWS * width * dtype.itemsize):
        values = np.frombuffer(content, dtype).reshape(-1, width)
        if settings.split.column is not None:
            codes = np.frombuffer(labels.read(CHUNK_ROWS), np.uint8)
        else:
            generator = numpy_generator(settings.split.seed, "split", chunk)
            taken = generator.multivariate_hypergeometric(left, len(values), method="marginals")
            codes = generator.permutation(np.repeat(np.arange(len(SPLITS), dtype=np.uint8), taken))
            left -= taken
        yield values, codes
        chunk += 1


def _write_splits(
    path: Path,
    folder: Path,
    chunks: Iterator[tuple[NDArray[Any], NDArray[np.uint8]]],
    sizes: dict[Split, int],
    columns: list[str],
    dtype: Dtype,
) -> tuple[list[float], list[float], dict[Split, str]]:
    """Write each split's array; return the training rows' mean and standard deviation [columns], and the arrays' digests.

    Raises TableError, before an array gets its name, when a column's deviation is beyond float64.
    """
    width = len(columns)
    count, origin, mean, squares = 0, np.zeros(width), np.zeros(width), np.zeros(width)
    with ExitStack() as stack:
        paths = {name: stack.enter_context(atomic_path(folder / f"{name}.npy")) for name in sizes}
        writers = {name: stack.enter_context(ArrayWriter(paths[name], sizes[name], width, dtype)) for name in sizes}
        stack.enter_context(np.errstate(over="ignore", invalid="ignore"))
        for values, codes in chunks:
            # Sorted by their splits, whose rows stay in order: one gather takes less time than a mask for each.
            ordered = values.take(np.argsort(codes, kind="stable"), axis=0)
            counts = np.bincount(codes, minlength=len(SPLITS))
            parts = np.split(ordered, counts.cumsum()[:-1])
            for part, writer in zip(parts, writers.values(), strict=True):
                writer.write(part)
            if len(train := parts[0].astype(np.float64)):
                # Counted from the first row: a constant column's deviation is exactly 0, and an offset costs no digits.
                origin = origin if count else train[0].copy()
                train -= origin
                # Chan, Golub and LeVeque (1979): the moments of two samples joined, without a sum of large squares.
                count += len(train)
                middle = train.mean(axis=0)
                delta = middle - mean
                train -= middle
                squares += np.square(train, out=train).sum(axis=0) + delta**2 * len(train) * (count - len(train)) / count
                mean += delta * len(train) / count
        for name, sum_of_squares in zip(columns, squares, strict=True):
            if not np.isfinite(sum_of_squares):
                found = "found training rows whose standard deviation is beyond float64"
                raise TableError(f"{path}: column {name!r}: {found}, allowed: numbers between -1e150 and 1e150")
        digests = {name: writer.sha256 for name, writer in writers.items()}
    return (origin + mean).tolist(), np.sqrt(squares / count).tolist(), digests
